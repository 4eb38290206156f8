package erofs

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// reader takes nodes out of an image.
type reader struct {
	img  *Image
	at   func(off int64, n int) ([]byte, error)
	left int64 // bytes of the image that no node was made of
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

func (r *reader) inode(nid uint64) (*found, error) {
	if nid < blockSize/slotSize || nid >= uint64(r.img.size/slotSize) {
		return nil, errs.New(errs.Invalid, "inode %d is outside of the image", nid)
	}
	b, err := r.at(int64(nid)*slotSize, inodeSize)
	if err != nil {
		return nil, err
	}
	in, err := r.parse(nid, b)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	return in, nil
}

func (r *reader) parse(nid uint64, b []byte) (*found, error) {
	le := binary.LittleEndian
	n := &tree.Node{
		Mode: uint32(le.Uint16(b[4:])), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]),
		Sec: int64(le.Uint64(b[32:])), Nsec: le.Uint32(b[40:]),
	}
	in := &found{node: n, nid: nid, format: le.Uint16(b), size: int64(le.Uint64(b[8:])), links: le.Uint32(b[44:])}
	if n.Nsec >= 1e9 || in.size < 0 || in.links == 0 || fileType(n.Mode) == 0 {
		return nil, errs.New(errs.Invalid, "it makes no sense")
	}
	in.tail = int64(nid)*slotSize + inodeSize
	if count := int64(le.Uint16(b[2:])); count > 0 {
		size := xattrHeader + 4*(count-1)
		list, err := r.at(in.tail, int(size))
		if err == nil {
			err = takeAttrs(list, n)
		}
		if err != nil {
			return nil, err
		}
		in.tail += size
	}
	if err := r.use(in.tail - int64(nid)*slotSize); err != nil {
		return nil, err
	}
	return in, r.fill(in, le.Uint32(b[16:]))
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

// block returns a block of a folder's data.
func (r *reader) block(in *found, i int64) ([]byte, error) {
	n := min(in.size-i*blockSize, blockSize)
	switch {
	case in.format != inlineData || n == blockSize:
		return r.at(in.data+i*blockSize, int(n))
	case in.tail%blockSize+n > blockSize:
		return nil, errs.New(errs.Invalid, "its data cross the end of a block")
	}
	return r.at(in.tail, int(n))
}

// parseEntries appends the entries in a block of a folder's data to list.
func parseEntries(list []entry, b []byte) ([]entry, error) {
	le := binary.LittleEndian
	if len(b) < entrySize {
		return nil, errs.New(errs.Invalid, "a folder's block is cut off")
	}
	first := int(le.Uint16(b[8:]))
	if first == 0 || first%entrySize != 0 || first >= len(b) {
		return nil, errs.New(errs.Invalid, "names start at %d", first)
	}
	names := string(b[first:])
	start := 0
	for off := 0; off < first; off += entrySize {
		end := len(names)
		if off+entrySize < first {
			end = int(le.Uint16(b[off+entrySize+8:])) - first
		} else if i := strings.IndexByte(names[start:], 0); i >= 0 {
			end = start + i
		}
		if end <= start || end > len(names) {
			return nil, errs.New(errs.Invalid, "a name ends before it starts")
		}
		list = append(list, entry{names[start:end], le.Uint64(b[off:]), b[off+10]})
		start = end
	}
	return list, nil
}

// lookup finds name in a folder.
func (r *reader) lookup(in *found, name string) (entry, bool, error) {
	low, high := int64(0), (in.size-1)/blockSize
	var list []entry
	for low <= high {
		middle := low + (high-low)/2
		b, err := r.block(in, middle)
		if err == nil {
			list, err = parseEntries(list[:0], b)
		}
		switch {
		case err != nil:
			return entry{}, false, err
		case name < list[0].name:
			high = middle - 1
		case name > list[len(list)-1].name:
			low = middle + 1
		default:
			for _, e := range list {
				if e.name == name {
					return e, checkName(name) == nil, nil
				}
			}
			return entry{}, false, nil
		}
	}
	return entry{}, false, nil
}

// entries returns all entries of a folder but "." and "..", which must lead
// to itself and to parent, unless that is 0.
func (r *reader) entries(in *found, parent uint64) ([]entry, error) {
	if err := r.use(in.size); err != nil {
		return nil, err
	}
	var list []entry
	for i := range (in.size-1)/blockSize + 1 {
		b, err := r.block(in, i)
		if err == nil {
			list, err = parseEntries(list, b)
		}
		if err != nil {
			return nil, err
		}
	}
	kept, dots, last := list[:0], 0, ""
	for _, e := range list {
		switch {
		case e.name <= last:
			return nil, errs.New(errs.Invalid, "names are out of order")
		case e.name == "." && e.nid == in.nid && e.ftype == 2:
			dots++
		case e.name == ".." && (e.nid == parent || parent == 0) && e.ftype == 2:
			dots++
		default:
			if err := checkName(e.name); err != nil {
				return nil, err
			}
			kept = append(kept, e)
		}
		last = e.name
	}
	if dots != 2 {
		return nil, errs.New(errs.Invalid, "a folder without itself and its parent")
	}
	return kept, nil
}

// nodes reads the entries of a folder with their inodes.
func (r *reader) nodes(in *found) ([]tree.Entry, error) {
	list, err := r.entries(in, 0)
	if err != nil {
		return nil, err
	}
	entries := make([]tree.Entry, 0, len(list))
	links := map[uint64]*tree.Node{}
	for _, e := range list {
		n := links[e.nid]
		if n == nil {
			child, err := r.inode(e.nid)
			if err != nil {
				return nil, err
			}
			if n = child.node; child.links > 1 && !n.IsDir() {
				links[e.nid] = n
			}
		}
		if fileType(n.Mode) != e.ftype {
			return nil, errs.New(errs.Invalid, "%.300q is of another type than its inode", e.name)
		}
		entries = append(entries, tree.Entry{Name: e.name, Node: n})
	}
	return entries, nil
}

// link is a file with several names, as far as they are known.
type link struct {
	node *tree.Node
	left uint32 // names still to come
}

// tree reads the whole tree.
func (r *reader) tree() (*tree.Node, error) {
	root, err := r.inode(r.img.root)
	if err != nil {
		return nil, err
	}
	if !root.node.IsDir() {
		return nil, errs.New(errs.Invalid, "the root is no folder")
	}
	links := map[uint64]*link{}
	if err := r.descend(root, root.nid, links, map[uint64]bool{}, 0); err != nil {
		return nil, err
	}
	for nid, l := range links {
		if l.left > 0 {
			return nil, errs.New(errs.Invalid, "inode %d lacks %d of its names", nid, l.left)
		}
	}
	return root.node, nil
}

func (r *reader) descend(in *found, parent uint64, links map[uint64]*link, met map[uint64]bool, depth int) error {
	if met[in.nid] || depth > maxDepth {
		return errs.New(errs.Invalid, "a folder is in itself, or in too many")
	}
	met[in.nid] = true
	list, err := r.entries(in, parent)
	if err != nil {
		return fmt.Errorf("folder %d: %w", in.nid, err)
	}
	subfolders := uint32(0)
	var folders []*found
	for _, e := range list {
		n, child, err := r.linked(e, links)
		if err != nil {
			return err
		}
		if n.IsDir() {
			subfolders++
			folders = append(folders, child)
		}
		in.node.Set(e.name, n)
	}
	if in.links != subfolders+2 {
		return errs.New(errs.Invalid, "folder %d has %d links", in.nid, in.links)
	}
	for _, f := range folders {
		if err := r.descend(f, in.nid, links, met, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// linked reads the inode of an entry, if no other name of it came before.
func (r *reader) linked(e entry, links map[uint64]*link) (*tree.Node, *found, error) {
	l := links[e.nid]
	if l == nil {
		child, err := r.inode(e.nid)
		if err != nil {
			return nil, nil, err
		}
		if child.node.IsDir() || child.links == 1 {
			return child.node, child, matches(e, child.node)
		}
		l = &link{child.node, child.links}
		links[e.nid] = l
	}
	if l.left == 0 {
		return nil, nil, errs.New(errs.Invalid, "inode %d has more names than it says", e.nid)
	}
	l.left--
	return l.node, nil, matches(e, l.node)
}

func matches(e entry, n *tree.Node) error {
	if fileType(n.Mode) != e.ftype {
		return errs.New(errs.Invalid, "%.300q is of another type than its inode", e.name)
	}
	return nil
}
