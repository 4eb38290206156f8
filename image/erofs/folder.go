package erofs

import (
	"encoding/binary"
	"slices"
)

// entry is a name in a folder's data.
type entry struct {
	name  string
	nid   uint64
	ftype uint8
}

// list returns all names of a folder, "." and ".." at their places among
// them, for the kernel searches by halving.
func (p *plan) list(in *inode) []entry {
	list := p.listing[:0]
	for i, e := range in.node.Entries() {
		child := &p.inodes[p.children[int(in.first)+i]]
		list = append(list, entry{e.Name, child.nid(), fileType(e.Node.Mode)})
	}
	for _, dot := range []entry{{".", in.nid(), 2}, {"..", p.inodes[in.parent].nid(), 2}} {
		i, _ := slices.BinarySearchFunc(list, dot.name, func(e entry, name string) int {
			switch {
			case e.name < name:
				return -1
			case e.name > name:
				return 1
			}
			return 0
		})
		list = slices.Insert(list, i, dot)
	}
	p.listing = list
	return list
}

// fill is how many of the entries one block takes, and the bytes they use.
func fill(list []entry) (n, used int) {
	for n < len(list) && used+entrySize+len(list[n].name) <= blockSize {
		used += entrySize + len(list[n].name)
		n++
	}
	return n, used
}

func (p *plan) folderSize(in *inode) int64 {
	full := int64(0)
	for list := p.list(in); ; full += blockSize {
		n, used := fill(list)
		if list = list[n:]; len(list) == 0 {
			return full + int64(used)
		}
	}
}

// folder writes the data of a folder: the tail that follows its inode, or
// what is in blocks.
func (e *emitter) folder(in *inode, tail bool) {
	start := e.at
	for list := e.list(in); len(list) > 0; {
		n, _ := fill(list)
		isTail := n == len(list) && in.tail > 0
		if isTail == tail {
			if !tail {
				e.pad(start + (e.at-start+blockSize-1)/blockSize*blockSize)
			}
			e.buf = putEntries(e.buf[:0], list[:n])
			e.write(e.buf)
		}
		list = list[n:]
	}
}

func putEntries(b []byte, list []entry) []byte {
	nameAt := entrySize * len(list)
	for _, e := range list {
		b = binary.LittleEndian.AppendUint64(b, e.nid)
		b = binary.LittleEndian.AppendUint16(b, uint16(nameAt))
		b = append(b, e.ftype, 0)
		nameAt += len(e.name)
	}
	for _, e := range list {
		b = append(b, e.name...)
	}
	return b
}
