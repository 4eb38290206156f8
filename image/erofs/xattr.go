package erofs

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/image/tree"
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

var yes = []byte("y")

// attrs appends what n has as xattrs in an image, in their order there.
func attrs(list []attr, n *tree.Node) ([]attr, error) {
	for _, x := range n.Xattrs {
		name := x.Name
		if rest, ok := strings.CutPrefix(name, overlayXattr); ok {
			name = escapedXattr + rest
		}
		if err := checkXattr(name, x.Value); err != nil {
			return nil, err
		}
		index, suffix := splitXattr(name)
		list = append(list, attr{index, suffix, x.Value})
	}
	own := func(name string, value []byte) {
		index, suffix := splitXattr(name)
		list = append(list, attr{index, suffix, value})
	}
	if n.Implied {
		own(impliedXattr, yes)
	}
	if n.Object != (tree.Digest{}) {
		path := redirect(n.Object)
		own(metacopyXattr, nil)
		own(redirectXattr, path[:])
	}
	if n.Opaque {
		own(opaqueXattr, yes)
	}
	slices.SortFunc(list, compareAttrs)
	for i := range list[min(1, len(list)):] {
		if compareAttrs(list[i], list[i+1]) == 0 {
			return nil, errs.New(errs.Invalid, "xattr %s%s is there twice", prefixes[list[i].index], list[i].suffix)
		}
	}
	return list, nil
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

// attrsSize is the room that the xattrs of an inode take.
func attrsSize(list []attr) int {
	if len(list) == 0 {
		return 0
	}
	size := xattrHeader
	for _, a := range list {
		size += a.size()
	}
	return size
}

// putAttrs appends the xattrs of an inode to b.
func putAttrs(b []byte, list []attr) []byte {
	if len(list) == 0 {
		return b
	}
	filter := ^uint32(0)
	for _, a := range list {
		filter &^= filterBit(a.index, a.suffix)
	}
	b = binary.LittleEndian.AppendUint32(b, filter)
	b = append(b, make([]byte, xattrHeader-4)...) // none are shared
	for _, a := range list {
		end := len(b) + a.size()
		b = append(b, uint8(len(a.suffix)), a.index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(a.value)))
		b = append(append(b, a.suffix...), a.value...)
		b = append(b, "\x00\x00\x00"[:end-len(b)]...)
	}
	return b
}

// takeAttrs reads the xattrs in b into n.
func takeAttrs(b []byte, n *tree.Node) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) <= xattrHeader || b[4] != 0 {
		return errs.New(errs.Invalid, "xattrs are not of this kind")
	}
	filter := binary.LittleEndian.Uint32(b)
	b = b[xattrHeader:]
	metacopy := false
	for last := (attr{}); len(b) > 0; {
		if len(b) < 4 {
			return errs.New(errs.Invalid, "an xattr is cut off")
		}
		nameEnd := 4 + int(b[0])
		valueEnd := nameEnd + int(binary.LittleEndian.Uint16(b[2:]))
		if (valueEnd+3)&^3 > len(b) {
			return errs.New(errs.Invalid, "an xattr is cut off")
		}
		a := attr{b[1], string(b[4:nameEnd]), b[nameEnd:valueEnd]}
		if compareAttrs(last, a) >= 0 { // none has number 0 and no name
			return errs.New(errs.Invalid, "xattrs are out of order")
		}
		filter |= filterBit(a.index, a.suffix)
		if err := takeAttr(a, n, &metacopy); err != nil {
			return err
		}
		last, b = a, b[a.size():]
	}
	if metacopy != (n.Object != tree.Digest{}) {
		return errs.New(errs.Invalid, "a body is neither here nor elsewhere")
	}
	_ = filter
	return nil
}

func takeAttr(a attr, n *tree.Node, metacopy *bool) error {
	name, ok := joinXattr(a.index, a.suffix)
	if !ok {
		return errs.New(errs.Invalid, "xattr %d:%.300q", a.index, a.suffix)
	}
	switch name {
	case opaqueXattr, impliedXattr:
		if !n.IsDir() || string(a.value) != "y" {
			return errs.New(errs.Invalid, "xattr %s is %.80q", name, a.value)
		}
		n.Opaque = n.Opaque || name == opaqueXattr
		n.Implied = n.Implied || name == impliedXattr
		return nil
	case metacopyXattr:
		if *metacopy = true; len(a.value) > 0 || !n.IsRegular() {
			return errs.New(errs.Invalid, "xattr %s is %.80q", name, a.value)
		}
		return nil
	case redirectXattr:
		if n.Object, ok = parseRedirect(a.value); !ok {
			return errs.New(errs.Invalid, "xattr %s is %.80q", name, a.value)
		}
		return nil
	}
	if err := checkXattr(name, a.value); err != nil {
		return err
	}
	if rest, escaped := strings.CutPrefix(name, escapedXattr); escaped {
		name = overlayXattr + rest
	} else if strings.HasPrefix(name, overlayXattr) {
		return errs.New(errs.Invalid, "xattr %s", name)
	}
	n.Xattrs = append(n.Xattrs, tree.Xattr{Name: name, Value: slices.Clone(a.value)})
	return nil
}
