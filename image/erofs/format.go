// Package erofs keeps a file tree as an EROFS image that the kernel mounts:
// as the metadata layer of an overlay whose bodies are objects.
//
// An image is written in two passes over the tree, the first for its UUID, and
// is the same to the byte for the same tree. It has blocks of 4096 bytes:
//
//	block 0        the superblock at byte 1024, with its checksum and a UUID
//	               that is a digest of all bytes
//	from block 1   inodes, all of the 64-byte kind, in the order of a walk that
//	               puts the entries of a folder next to each other; each is
//	               followed by its xattrs and, where they fit into the block,
//	               its last bytes of data
//	then           data that did not fit: folders, bodies, long links
//
// How the words of package tree are spelled:
//
//	body as object   an inode of the body's size that is one hole, with
//	                 trusted.overlay.metacopy, and trusted.overlay.redirect
//	                 to /<2 hex>/<62 hex> in the overlay's data-only layer
//	small body       data of the inode
//	whiteout         character device 0:0
//	opaque folder    trusted.overlay.opaque
//	implied folder   trusted.overlay.berth.implied
//	trusted.overlay  of the tree itself is trusted.overlay.overlay, which the
//	                 overlay shows to the tree's owner under its right name
//
// The reader takes no image on trust: whatever breaks these rules is an error
// of kind Invalid. It uses no byte of an image twice, so that a tree is never
// much larger than its image.
package erofs

import (
	"encoding/binary"
	"encoding/hex"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	uuidOffset  = 48 // in the superblock
	uuidSize    = 16
	magic       = 0xE0F5E1E2

	slotSize     = 32 // a nid counts these from the start of the image
	inodeSize    = 64
	entrySize    = 12 // of a folder's entry, without its name
	xattrHeader  = 12
	maxXattrs    = xattrHeader + 4*(1<<16-2) // bytes of all xattrs of an inode
	maxName      = 255
	maxTarget    = 4095
	maxValue     = 1<<16 - 1
	maxDepth     = 2048
	nullAddress  = 0xFFFFFFFF
	maxChunkBits = 31 // more than a block

	featureChecksum = 1
	featureMtime    = 2
	featureFilter   = 4
	featureChunks   = 4 // incompatible
)

// The ways in which an inode's data lie, shifted as the inode has them, with
// the bit of the 64-byte inode.
const (
	plainData  = 1 | 0<<1
	inlineData = 1 | 2<<1
	chunkData  = 1 | 4<<1
)

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// prefixes are the starts of xattr names that EROFS has numbers for. A name
// with none of them is kept whole under number 0, and the kernel passes over
// it.
var prefixes = [...]string{
	1: "user.", 2: accessACL, 3: defaultACL, 4: "trusted.", 6: "security.",
}

func splitXattr(name string) (index uint8, suffix string) {
	switch name {
	case accessACL:
		return 2, ""
	case defaultACL:
		return 3, ""
	}
	for _, i := range [...]uint8{1, 4, 6} {
		if suffix, ok := strings.CutPrefix(name, prefixes[i]); ok {
			return i, suffix
		}
	}
	return 0, name
}

// joinXattr is the other way round; ok is false for what splitXattr never
// makes.
func joinXattr(index uint8, suffix string) (name string, ok bool) {
	if int(index) >= len(prefixes) || index != 0 && prefixes[index] == "" {
		return "", false
	}
	name = prefixes[index] + suffix
	i, _ := splitXattr(name)
	return name, i == index && name != ""
}

// fileType is what a folder's entry says of an inode.
func fileType(mode uint32) uint8 {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// encodeDevice packs a device number as the kernel does on disk.
func encodeDevice(dev uint64) (uint32, bool) {
	major, minor := unix.Major(dev), unix.Minor(dev)
	if major >= 1<<12 || minor >= 1<<20 || unix.Mkdev(major, minor) != dev {
		return 0, false
	}
	return minor&0xff | major<<8 | (minor&^0xff)<<12, true
}

func decodeDevice(dev uint32) uint64 {
	return unix.Mkdev(dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)
}

// chunks is how many addresses a hole of size bytes has.
func chunks(size int64) int64 { return (size-1)>>(blockBits+maxChunkBits) + 1 }

// checkName refuses what is no name of a folder's entry.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return errs.New(errs.Invalid, "%.300q is no name of a file", name)
	}
	return nil
}

// checkACL refuses an access control list that the kernel could not read: it
// would let nobody near the file.
func checkACL(name string, value []byte) error {
	if name != accessACL && name != defaultACL {
		return nil
	}
	valid := len(value) >= 4 && len(value)%8 == 4 && binary.LittleEndian.Uint32(value) == 2
	for entry := value[min(4, len(value)):]; valid && len(entry) > 0; entry = entry[8:] {
		switch binary.LittleEndian.Uint16(entry) {
		case 0x01, 0x02, 0x04, 0x08, 0x10, 0x20: // owner, user, owning group, group, mask, others
		default:
			valid = false
		}
	}
	if !valid {
		return errs.New(errs.Invalid, "xattr %s is no access control list", name)
	}
	return nil
}

const redirectSize = 2 + 2*len(tree.Digest{})

// redirect is where an object lies in the data-only layer.
func redirect(d tree.Digest) (path [redirectSize]byte) {
	var digits [64]byte
	hex.Encode(digits[:], d[:])
	path[0], path[3] = '/', '/'
	copy(path[1:], digits[:2])
	copy(path[4:], digits[2:])
	return path
}

// parseRedirect is the other way round, for nothing but what redirect makes.
func parseRedirect(path []byte) (d tree.Digest, ok bool) {
	if len(path) != redirectSize {
		return d, false
	}
	var digits [64]byte
	copy(digits[:2], path[1:])
	copy(digits[2:], path[4:])
	_, err := hex.Decode(d[:], digits[:])
	same := redirect(d)
	return d, err == nil && string(same[:]) == string(path) && d != tree.Digest{}
}
