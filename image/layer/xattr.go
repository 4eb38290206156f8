package layer

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

const (
	overlayXattr = "trusted.overlay."
	escape       = len("overlay.") // by so much they are longer on disk

	// What Linux, and the metadata image, can keep.
	maxXattrName  = 255
	maxXattrValue = 1<<16 - 1
	maxXattrs     = 128 << 10 // of one file, names and values
)

// dressXattrs gives n the xattrs that a file of its type can have. Others are
// left out, as every unpacker does: images carry labels of other systems. What
// the kernel would not take as the value of a name that it knows is Invalid.
func dressXattrs(n *tree.Node, xattrs []tree.Xattr) error {
	total := 0
	for _, x := range xattrs {
		keep, err := checkXattr(n, &x)
		if err != nil {
			return errs.New(errs.Invalid, "xattr %s: %w", brief(x.Name), err)
		}
		if keep {
			total += len(x.Name) + len(x.Value)
			n.Xattrs = append(n.Xattrs, x)
		}
	}
	if total > maxXattrs {
		return errs.New(errs.Invalid, "%d bytes of xattrs, more than %d", total, maxXattrs)
	}
	return nil
}

func checkXattr(n *tree.Node, x *tree.Xattr) (keep bool, err error) {
	disk := len(x.Name)
	if strings.HasPrefix(x.Name, overlayXattr) {
		disk += escape
	}
	switch {
	case x.Name == "" || disk > maxXattrName:
		return false, errs.New(errs.Invalid, "a name of %d bytes", len(x.Name))
	case strings.IndexByte(x.Name, 0) >= 0:
		return false, errs.New(errs.Invalid, "the name holds a zero byte")
	case len(x.Value) > maxXattrValue:
		return false, errs.New(errs.Invalid, "a value of %d bytes", len(x.Value))
	}
	space, rest, _ := strings.Cut(x.Name, ".")
	if rest == "" {
		return false, nil
	}
	switch space {
	case "user":
		return n.IsDir() || n.IsRegular(), nil
	case "trusted":
		return true, nil
	case "security":
		return true, checkCapability(x)
	}
	if n.Type() == unix.S_IFLNK {
		return false, nil
	}
	switch x.Name {
	case "system.posix_acl_access":
		return checkAccessACL(n, x.Value)
	case "system.posix_acl_default":
		_, _, err := parseACL(x.Value)
		if err == nil && !n.IsDir() && len(x.Value) > aclHeader {
			err = errs.New(errs.Invalid, "only folders have one")
		}
		return err == nil && len(x.Value) > aclHeader, err
	}
	return false, nil
}

// checkCapability rejects what the kernel would not take as file
// capabilities.
func checkCapability(x *tree.Xattr) error {
	if x.Name != "security.capability" {
		return nil
	}
	if len(x.Value) >= 4 {
		switch revision := x.Value[3]; {
		case revision == 2 && len(x.Value) == 20, revision == 3 && len(x.Value) == 24:
			return nil
		}
	}
	return errs.New(errs.Invalid, "no capabilities as Linux keeps them")
}

// Parts of an ACL, as the kernel spells it in xattrs.
const (
	aclHeader = 4
	aclEntry  = 8

	aclOwner      = 0x01
	aclUser       = 0x02
	aclGroup      = 0x04
	aclNamedGroup = 0x08
	aclMask       = 0x10
	aclOther      = 0x20
)

// checkAccessACL gives n the mode that its ACL stands for. One that says no
// more than a mode is not kept.
func checkAccessACL(n *tree.Node, value []byte) (keep bool, err error) {
	mode, more, err := parseACL(value)
	if err != nil || len(value) == aclHeader {
		return false, err
	}
	n.Mode = n.Mode&^0o777 | mode
	return more, nil
}

// parseACL checks an ACL and returns the permissions that it shows in the
// mode; more says that it says more than those.
func parseACL(value []byte) (mode uint32, more bool, err error) {
	broken := errs.New(errs.Invalid, "no ACL as Linux keeps it")
	if len(value) < aclHeader || (len(value)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(value) != 2 {
		return 0, false, broken
	}
	var seen, last uint32
	for at := aclHeader; at < len(value); at += aclEntry {
		kind, perm := uint32(binary.LittleEndian.Uint16(value[at:])), uint32(binary.LittleEndian.Uint16(value[at+2:]))
		id := binary.LittleEndian.Uint32(value[at+4:])
		named := kind == aclUser || kind == aclNamedGroup
		switch {
		case perm > 7, kind == 0, kind > aclOther, kind&(kind-1) != 0, kind < last:
			return 0, false, broken
		case kind == last && !named, named && id == 1<<32-1:
			return 0, false, broken
		}
		seen, last = seen|kind, kind
		switch kind {
		case aclOwner:
			mode |= perm << 6
		case aclGroup:
			mode |= perm << 3
		case aclMask: // comes after aclGroup
			mode = mode&^0o070 | perm<<3
		case aclOther:
			mode |= perm
		}
	}
	more = seen&(aclUser|aclNamedGroup|aclMask) != 0
	const must = aclOwner | aclGroup | aclOther
	if len(value) > aclHeader && (seen&must != must || seen&(aclUser|aclNamedGroup) != 0 && seen&aclMask == 0) {
		return 0, false, broken
	}
	return mode, more, nil
}
