package erofs

import (
	"encoding/binary"
	"slices"
	"strings"

	"berth/base/errs"
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

// entries returns all entries of a folder but "." and "..", which must lead
// to itself and to parent.
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
		case e.name == ".." && e.nid == parent && e.ftype == 2:
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
