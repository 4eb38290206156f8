package erofs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/image/tree"
)

const (
	trusted = 4 // the number of names that start with "trusted."

	overlayXattr = "trusted.overlay."
	escapedXattr = "trusted.overlay.overlay."

	// The image's own, without their start.
	opaqueXattr   = "overlay.opaque"
	metacopyXattr = "overlay.metacopy"
	redirectXattr = "overlay.redirect"
	impliedXattr  = "overlay.berth.implied"
)

// attr is an xattr as an image has it.
type attr struct {
	index  uint8
	suffix string
	value  []byte
}

func (a attr) size() int { return (4 + len(a.suffix) + len(a.value) + 3) &^ 3 }

func compareAttrs(a, b attr) int {
	if c := cmp.Compare(a.index, b.index); c != 0 {
		return c
	}
	return cmp.Compare(a.suffix, b.suffix)
}

// attrList is what one inode has as xattrs in an image, in their order there.
// It is filled again and again.
type attrList struct {
	list     []attr
	redirect [redirectSize]byte
}

func (l *attrList) of(n *tree.Node) error {
	l.list = l.list[:0]
	for _, x := range n.Xattrs {
		name := x.Name
		if rest, ok := strings.CutPrefix(name, overlayXattr); ok {
			name = escapedXattr + rest
		}
		if err := checkXattr(name, x.Value); err != nil {
			return err
		}
		index, suffix := splitXattr(name)
		l.list = append(l.list, attr{index, suffix, x.Value})
	}
	if n.Implied {
		l.list = append(l.list, attr{trusted, impliedXattr, []byte("y")})
	}
	if n.Object != (tree.Digest{}) {
		l.redirect = redirect(n.Object)
		l.list = append(l.list, attr{trusted, metacopyXattr, nil}, attr{trusted, redirectXattr, l.redirect[:]})
	}
	if n.Opaque {
		l.list = append(l.list, attr{trusted, opaqueXattr, []byte("y")})
	}
	if len(n.Xattrs) == 0 {
		return nil
	}
	slices.SortFunc(l.list, compareAttrs)
	for i, a := range l.list[1:] {
		if compareAttrs(l.list[i], a) == 0 {
			return errs.New(errs.Invalid, "xattr %s%s is there twice", prefixes[a.index], a.suffix)
		}
	}
	return nil
}

func checkXattr(name string, value []byte) error {
	switch {
	case name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0:
		return errs.New(errs.Invalid, "%.300q is no name of an xattr", name)
	case len(value) > maxValue:
		return errs.New(errs.Unsupported, "xattr %s has %d bytes, more than %d", name, len(value), maxValue)
	}
	return checkACL(name, value)
}

// size is the room that the xattrs take in an inode.
func (l *attrList) size() int {
	if len(l.list) == 0 {
		return 0
	}
	size := xattrHeader
	for _, a := range l.list {
		size += a.size()
	}
	return size
}

// append appends the xattrs as they are in an inode.
func (l *attrList) append(b []byte) []byte {
	if len(l.list) == 0 {
		return b
	}
	filter := ^uint32(0)
	for _, a := range l.list {
		filter &^= filterBit(a.index, a.suffix)
	}
	b = binary.LittleEndian.AppendUint32(b, filter)
	b = append(b, zeros[:xattrHeader-4]...) // none are shared
	for _, a := range l.list {
		end := len(b) + a.size()
		b = append(b, uint8(len(a.suffix)), a.index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(a.value)))
		b = append(append(b, a.suffix...), a.value...)
		b = append(b, zeros[:end-len(b)]...)
	}
	return b
}

// takeAttrs gives n the xattrs in b.
func takeAttrs(b []byte, n *tree.Node) error {
	if len(b) <= xattrHeader || b[4] != 0 {
		return errs.New(errs.Invalid, "xattrs are not of this kind")
	}
	filter, want := binary.LittleEndian.Uint32(b), ^uint32(0)
	metacopy := false
	var lastIndex uint8
	var lastSuffix []byte
	for b = b[xattrHeader:]; len(b) > 0; {
		if len(b) < 4 {
			return errs.New(errs.Invalid, "an xattr is cut off")
		}
		index, nameEnd := b[1], 4+int(b[0])
		valueEnd := nameEnd + int(binary.LittleEndian.Uint16(b[2:]))
		end := (valueEnd + 3) &^ 3
		if end > len(b) {
			return errs.New(errs.Invalid, "an xattr is cut off")
		}
		suffix := b[4:nameEnd]
		if c := cmp.Compare(lastIndex, index); c > 0 || c == 0 && bytes.Compare(lastSuffix, suffix) >= 0 {
			return errs.New(errs.Invalid, "xattrs are out of order")
		}
		if err := takeAttr(index, suffix, b[nameEnd:valueEnd], n, &metacopy); err != nil {
			return err
		}
		want &^= filterBit(index, suffix)
		lastIndex, lastSuffix, b = index, suffix, b[end:]
	}
	switch {
	case metacopy != (n.Object != tree.Digest{}):
		return errs.New(errs.Invalid, "a body is neither here nor elsewhere")
	case filter != want:
		return errs.New(errs.Invalid, "the filter of xattrs is wrong")
	}
	return nil
}

func takeAttr(index uint8, suffix, value []byte, n *tree.Node, metacopy *bool) error {
	if index != trusted {
		return takeTreeXattr(index, string(suffix), value, n)
	}
	var valid bool
	switch string(suffix) {
	case opaqueXattr:
		valid, n.Opaque = n.IsDir() && string(value) == "y", true
	case impliedXattr:
		valid, n.Implied = n.IsDir() && string(value) == "y", true
	case metacopyXattr:
		valid, *metacopy = n.IsRegular() && len(value) == 0, true
	case redirectXattr:
		n.Object, valid = parseRedirect(value)
	default:
		return takeTreeXattr(index, string(suffix), value, n)
	}
	if !valid {
		return errs.New(errs.Invalid, "xattr trusted.%s is %.80q", suffix, value)
	}
	return nil
}

// takeTreeXattr takes an xattr that is the tree's own.
func takeTreeXattr(index uint8, suffix string, value []byte, n *tree.Node) error {
	name, ok := joinXattr(index, suffix)
	if !ok {
		return errs.New(errs.Invalid, "xattr %d:%.300q", index, suffix)
	}
	if err := checkXattr(name, value); err != nil {
		return err
	}
	if rest, escaped := strings.CutPrefix(name, escapedXattr); escaped {
		name = overlayXattr + rest
	} else if strings.HasPrefix(name, overlayXattr) {
		return errs.New(errs.Invalid, "xattr %s", name)
	}
	n.Xattrs = append(n.Xattrs, tree.Xattr{Name: name, Value: slices.Clone(value)})
	return nil
}
