package erofs

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// reader takes nodes out of an image.
type reader struct {
	img  *Image
	at   func(off int64, n int) ([]byte, error)
	left int64 // bytes of the image that no node was made of

	// Nodes of a whole tree are made several at a time: most of them live as
	// long as the rest.
	perSlab int
	slab    []tree.Node
}

// node makes a node.
func (r *reader) node() *tree.Node {
	if r.perSlab == 0 {
		return new(tree.Node)
	}
	if len(r.slab) == 0 {
		r.slab = make([]tree.Node, r.perSlab)
	}
	n := &r.slab[0]
	r.slab = r.slab[1:]
	return n
}

// found is an inode that was read.
type found struct {
	node   *tree.Node
	nid    uint64
	size   int64 // of the data
	format uint16
	data   int64 // address of the first block of data
	tail   int64 // offset of what follows inode and xattrs
	links  uint32
}

// use notes that n bytes of the image have become part of a node.
func (r *reader) use(n int64) error {
	if n < 0 || n > r.left {
		return errs.New(errs.Invalid, "the image uses its bytes more than once")
	}
	r.left -= n
	return nil
}

func (r *reader) inode(nid uint64) (in found, err error) {
	if nid < blockSize/slotSize || nid >= uint64(r.img.size/slotSize) {
		return in, errs.New(errs.Invalid, "inode %d is outside of the image", nid)
	}
	in.nid = nid
	b, err := r.at(int64(nid)*slotSize, inodeSize)
	if err == nil {
		err = r.parse(&in, b)
	}
	if err != nil {
		return in, fmt.Errorf("inode %d: %w", nid, err)
	}
	return in, nil
}

func (r *reader) parse(in *found, b []byte) error {
	le, n := binary.LittleEndian, r.node()
	n.Mode, n.UID, n.GID = uint32(le.Uint16(b[4:])), le.Uint32(b[24:]), le.Uint32(b[28:])
	n.Sec, n.Nsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
	in.node, in.format, in.size, in.links = n, le.Uint16(b), int64(le.Uint64(b[8:])), le.Uint32(b[44:])
	if n.Nsec >= 1e9 || in.size < 0 || in.links == 0 {
		return errs.New(errs.Invalid, "a time, size or number of links that cannot be")
	}
	start := int64(in.nid) * slotSize
	in.tail = start + inodeSize
	data := le.Uint32(b[16:])
	if count := int64(le.Uint16(b[2:])); count > 0 {
		size := xattrHeader + 4*(count-1)
		list, err := r.at(in.tail, int(size))
		if err == nil {
			err = takeAttrs(list, n)
		}
		if err != nil {
			return err
		}
		in.tail += size
	}
	if err := r.use(in.tail - start); err != nil {
		return err
	}
	return r.fill(in, data)
}

// fill sets what depends on the type. Data are only read of what is no folder.
func (r *reader) fill(in *found, union uint32) error {
	n := in.node
	if in.format != plainData && in.format != inlineData && (in.format != chunkData || !n.IsRegular()) {
		return errs.New(errs.Invalid, "its data lie in an unknown way")
	}
	in.data = int64(union) * blockSize
	switch n.Type() {
	case unix.S_IFDIR:
		if in.size == 0 {
			return errs.New(errs.Invalid, "a folder without data")
		}
		return nil
	case unix.S_IFCHR, unix.S_IFBLK:
		if n.Rdev = decodeDevice(union); in.size == 0 {
			return nil
		}
	case unix.S_IFIFO, unix.S_IFSOCK:
		if in.size == 0 {
			return nil
		}
	case unix.S_IFLNK:
		if in.size <= maxTarget {
			target, err := r.bytes(in)
			if err == nil {
				n.Target = string(target)
				err = checkTarget(n.Target)
			}
			return err
		}
	case unix.S_IFREG:
		return r.body(in, union)
	}
	return errs.New(errs.Invalid, "it cannot have %d bytes", in.size)
}

func (r *reader) body(in *found, union uint32) error {
	n := in.node
	n.Size = in.size
	switch {
	case in.format == chunkData:
		if union != maxChunkBits || in.size == 0 {
			return errs.New(errs.Invalid, "a hole of another kind")
		}
		return r.hole(in)
	case n.Object != tree.Digest{} && in.size > 0:
		return errs.New(errs.Invalid, "a body that is here and an object")
	case in.size > 0:
		body, err := r.bytes(in)
		n.Body = slices.Clone(body)
		return err
	}
	return nil
}

func (r *reader) hole(in *found) error {
	size := 4 * chunks(in.size)
	if err := r.use(size); err != nil {
		return err
	}
	b, err := r.at(in.tail, int(size))
	for i := 0; err == nil && i < len(b); i++ {
		if b[i] != 0xff {
			err = errs.New(errs.Invalid, "a body in pieces")
		}
	}
	return err
}

// bytes returns all data of an inode.
func (r *reader) bytes(in *found) ([]byte, error) {
	if err := r.use(in.size); err != nil {
		return nil, err
	}
	cut := in.size
	if in.format == inlineData {
		cut -= in.size % blockSize
	}
	if cut == in.size {
		return r.at(in.data, int(cut))
	}
	if in.tail%blockSize+in.size-cut > blockSize {
		return nil, errs.New(errs.Invalid, "its data cross the end of a block")
	}
	tail, err := r.at(in.tail, int(in.size-cut))
	if err != nil || cut == 0 {
		return tail, err
	}
	head, err := r.at(in.data, int(cut))
	return slices.Concat(head, tail), err
}
