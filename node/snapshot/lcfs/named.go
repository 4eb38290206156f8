package lcfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"berth/image/tree"
)

// naming is an object and the number of an image that names it.
type naming struct {
	object tree.Digest
	image  int
}

// partRoom is how many bytes of lists are in memory at a time.
const partRoom = 4 << 20

// firstBytes is how many there are for a digest.
const firstBytes = 256

// part is the objects whose digests begin with bytes of a range, and the
// images that name them, in the order of digests.
type part struct {
	first, end int
	named      []naming
	list       []byte // room to read one into
}

// eachPart calls fn with the objects that images name, from those that begin
// with the byte from, in parts that are small enough to keep in memory, which
// only last until fn returns. It reads the lists of objects, and no trees.
func (s *Store) eachPart(ctx context.Context, images []string, from byte, fn func(part) error) error {
	total := int64(0)
	for _, name := range images {
		info, err := os.Stat(s.objectsPath(name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err == nil {
			total += info.Size()
		}
	}
	step := firstBytes
	for step > 1 && total*int64(step)/firstBytes > partRoom {
		step /= 2
	}
	p := part{}
	for first := int(from) / step * step; first < firstBytes; first += step {
		p = part{first: first, end: first + step, named: p.named[:0], list: p.list}
		for n, name := range images {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := s.readNamed(name, n, &p); err != nil && !errors.Is(err, os.ErrNotExist) { // swept meanwhile
				return fmt.Errorf("objects of image %.16s: %w", name, err)
			}
		}
		slices.SortFunc(p.named, func(a, b naming) int { return a.object.Compare(b.object) })
		if err := fn(p); err != nil {
			return err
		}
	}
	return nil
}

// readNamed adds what an image names in the range of p.
func (s *Store) readNamed(image string, number int, p *part) error {
	f, err := os.Open(s.objectsPath(image))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const size = int64(len(tree.Digest{}))
	n := info.Size() / size
	at, end := place(f, n, p.first), place(f, n, p.end)
	p.list = slices.Grow(p.list[:0], int(max(0, end-at)*size))
	list := p.list[:max(0, end-at)*size]
	if _, err := f.ReadAt(list, at*size); err != nil && err != io.EOF {
		return err
	}
	p.named = slices.Grow(p.named, len(list)/int(size))
	for object := range slices.Chunk(list, int(size)) {
		p.named = append(p.named, naming{tree.Digest(object), number})
	}
	return nil
}

// place finds the first of n digests that begins with the byte first or more.
func place(f io.ReaderAt, n int64, first int) int64 {
	switch first {
	case 0:
		return 0
	case firstBytes:
		return n
	}
	return int64(sort.Search(int(n), func(i int) bool {
		var b [1]byte
		_, err := f.ReadAt(b[:], int64(i)*int64(len(tree.Digest{})))
		return err != nil || int(b[0]) >= first
	}))
}

// runs calls fn for each object of the part, with all that name it.
func (p part) runs(fn func(object tree.Digest, by []naming) error) error {
	for rest := p.named; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].object == rest[0].object {
			n++
		}
		if err := fn(rest[0].object, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
