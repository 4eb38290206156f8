package erofs

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// inode is a node on its way into an image.
type inode struct {
	node   *tree.Node
	offset int64 // in the image
	blocks int64 // address of the data that lie in blocks of their own
	size   int64 // of the data; of a folder, its entries
	tail   int   // bytes of the data that follow the inode
	attrs  int   // bytes of xattrs
	format uint16
	links  uint32
	parent int32 // of a folder
	first  int32 // of a folder: where its entries are in plan.children
}

func (in *inode) nid() uint64 { return uint64(in.offset) / slotSize }

// plan is the layout of an image.
type plan struct {
	inodes   []inode
	children []int32 // inodes of all folders' entries
	known    map[*tree.Node]int32
	size     int64
	uuid     [uuidSize]byte
	attrs    attrList
	listing  []entry
}

// order numbers the inodes: a folder's entries next to each other, then what
// is in the first of them, and so on.
func (p *plan) order(root *tree.Node) error {
	if !root.IsDir() {
		return errs.New(errs.Invalid, "the root of a tree is a folder")
	}
	if err := p.add(root, 0); err != nil {
		return err
	}
	return p.enter(0, ".", 0)
}

func (p *plan) add(n *tree.Node, parent int32) error {
	if len(p.inodes) == math.MaxInt32 {
		return errs.New(errs.Unsupported, "the tree has more than %d files", math.MaxInt32)
	}
	in := inode{node: n, links: 1, parent: parent}
	if n.IsDir() {
		in.links = 2
	}
	p.known[n] = int32(len(p.inodes))
	p.inodes = append(p.inodes, in)
	return nil
}

func (p *plan) enter(dir int32, path string, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.Unsupported, "folders are nested more than %d deep", maxDepth)
	}
	entries := p.inodes[dir].node.Entries()
	first := len(p.children)
	p.inodes[dir].first = int32(first)
	for i, e := range entries {
		err := checkName(e.Name)
		if err == nil && i > 0 && entries[i-1].Name >= e.Name {
			err = errs.New(errs.Invalid, "names are out of order")
		}
		if err == nil {
			err = p.link(dir, e.Node)
		}
		if err != nil {
			return fmt.Errorf("%.300s/%.300s: %w", path, e.Name, err)
		}
	}
	for i, e := range entries {
		if e.Node.IsDir() {
			if err := p.enter(p.children[first+i], path+"/"+e.Name, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// link puts n under a name into dir.
func (p *plan) link(dir int32, n *tree.Node) error {
	i, known := p.known[n]
	switch {
	case known && n.IsDir():
		return errs.New(errs.Invalid, "the folder is there twice")
	case known:
		p.inodes[i].links++
	default:
		i = int32(len(p.inodes))
		if err := p.add(n, dir); err != nil {
			return err
		}
		if n.IsDir() {
			p.inodes[dir].links++
		}
	}
	p.children = append(p.children, i)
	return nil
}

// place gives each inode and its data their room.
func (p *plan) place() error {
	offset, blocks := int64(blockSize), int64(0)
	for i := range p.inodes {
		in := &p.inodes[i]
		if err := p.measure(in); err != nil {
			return fmt.Errorf("a file of mode %o and %d bytes: %w", in.node.Mode, in.node.Size, err)
		}
		if offset%blockSize > blockSize-inodeSize {
			offset += blockSize - offset%blockSize
		}
		fixed := int64(inodeSize + in.attrs)
		if in.format == inlineData {
			gap := int64(0)
			if offset%blockSize+fixed+int64(in.tail) > blockSize {
				gap = blockSize - offset%blockSize
			}
			if fixed+int64(in.tail) > blockSize || gap+int64(in.tail) > blockSize {
				in.format, in.tail = plainData, 0
			} else {
				offset += gap
			}
		}
		in.offset = offset
		offset += fixed + int64(in.tail)
		if in.format == chunkData {
			offset += 4 * chunks(in.size)
		} else {
			in.blocks = blocks
			blocks += (in.size - int64(in.tail) + blockSize - 1) / blockSize
		}
		offset = (offset + slotSize - 1) &^ (slotSize - 1)
	}
	inodeBlocks := (offset + blockSize - 1) / blockSize
	for i := range p.inodes {
		p.inodes[i].blocks += inodeBlocks
	}
	p.size = (inodeBlocks + blocks) * blockSize
	if inodeBlocks+blocks > math.MaxUint32-1 {
		return errs.New(errs.Unsupported, "the image would have %d bytes", p.size)
	}
	return nil
}

// measure finds out how much there is of an inode, and how its data lie where
// they fit.
func (p *plan) measure(in *inode) error {
	n := in.node
	if err := p.attrs.of(n); err != nil {
		return err
	}
	if in.attrs = p.attrs.size(); in.attrs > maxXattrs {
		return errs.New(errs.Unsupported, "xattrs have %d bytes, more than %d", in.attrs, maxXattrs)
	}
	if n.Nsec >= 1e9 {
		return errs.New(errs.Invalid, "time with %d nanoseconds", n.Nsec)
	}
	if (n.Opaque || n.Implied) && !n.IsDir() {
		return errs.New(errs.Invalid, "it is marked as a folder")
	}
	if !n.IsRegular() && (len(n.Body) > 0 || n.Object != tree.Digest{}) {
		return errs.New(errs.Invalid, "only regular files have bodies")
	}
	if n.Mode > math.MaxUint16 {
		return errs.New(errs.Invalid, "mode %o", n.Mode)
	}
	switch n.Type() {
	case unix.S_IFDIR:
		in.size = p.folderSize(in)
	case unix.S_IFREG:
		return in.measureBody()
	case unix.S_IFLNK:
		if err := checkTarget(n.Target); err != nil {
			return err
		}
		in.size = int64(len(n.Target))
	case unix.S_IFCHR, unix.S_IFBLK:
		if _, ok := encodeDevice(n.Rdev); !ok {
			return errs.New(errs.Invalid, "device number %#x", n.Rdev)
		}
	case unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return errs.New(errs.Invalid, "unknown type")
	}
	in.fit()
	return nil
}

func (in *inode) measureBody() error {
	n := in.node
	here := len(n.Body) > 0
	if n.Size < 0 || here && (n.Size != int64(len(n.Body)) || n.Object != tree.Digest{}) {
		return errs.New(errs.Invalid, "its body has %d bytes", len(n.Body))
	}
	in.size = n.Size
	if here || n.Size == 0 {
		in.fit()
		return nil
	}
	in.format = chunkData
	return nil
}

// fit wants the last part of a block behind the inode.
func (in *inode) fit() {
	in.format = plainData
	if tail := int(in.size % blockSize); tail > 0 {
		in.format, in.tail = inlineData, tail
	}
}

func checkTarget(target string) error {
	if target == "" || len(target) > maxTarget {
		return errs.New(errs.Invalid, "symbolic link to a path of %d bytes", len(target))
	}
	for i := range len(target) {
		if target[i] == 0 {
			return errs.New(errs.Invalid, "symbolic link to a path with a zero byte")
		}
	}
	return nil
}
