package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"berth/base/errs"
	"berth/image/tree"
)

// Image is an image that was opened. It may be used by several goroutines.
type Image struct {
	r    io.ReaderAt
	size int64
	root uint64
}

// Open looks at the superblock of the image of size bytes in r.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	if size < 2*blockSize || size%blockSize != 0 || size/blockSize >= nullAddress {
		return nil, errs.New(errs.Invalid, "open image: %d bytes are none", size)
	}
	img := &Image{r: r, size: size}
	b, err := img.readAt(superOffset, blockSize-superOffset)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	le := binary.LittleEndian
	sum := le.Uint32(b[4:])
	le.PutUint32(b[4:], 0)
	want := make([]byte, superSize)
	le.PutUint32(want[0:], magic)
	le.PutUint32(want[8:], featureChecksum|featureMtime|featureFilter)
	want[12] = blockBits
	copy(want[14:24], b[14:24]) // the root's nid, how many inodes
	le.PutUint32(want[36:], uint32(size/blockSize))
	copy(want[uuidOffset:][:uuidSize], b[uuidOffset:])
	le.PutUint32(want[80:], featureChunks)
	if string(b[:superSize]) != string(want) || sum != checksum(b) {
		return nil, errs.New(errs.Invalid, "open image: the superblock is not of this kind, or damaged")
	}
	img.root = uint64(le.Uint16(b[14:]))
	return img, nil
}

// outside fails if the image does not have n bytes at offset off.
func (img *Image) outside(off int64, n int) error {
	if off < 0 || n < 0 || int64(n) > img.size || off > img.size-int64(n) {
		return errs.New(errs.Invalid, "%d bytes at %d are outside of the image", n, off)
	}
	return nil
}

// readAt reads n bytes at offset off, which the image must have.
func (img *Image) readAt(off int64, n int) ([]byte, error) {
	if err := img.outside(off, n); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	got, err := img.r.ReadAt(b, off)
	switch {
	case got == n:
		return b, nil
	case errors.Is(err, io.EOF):
		return nil, errs.New(errs.Invalid, "the image ends early")
	}
	return nil, fmt.Errorf("read image: %w", err)
}

// Tree reads the whole image.
func (img *Image) Tree() (*tree.Node, error) {
	all, err := img.readAll()
	if err != nil {
		return nil, fmt.Errorf("read tree of image: %w", err)
	}
	r := reader{img: img, left: img.size, perSlab: 32, at: func(off int64, n int) ([]byte, error) {
		if err := img.outside(off, n); err != nil {
			return nil, err
		}
		return all[off:][:n:n], nil
	}}
	root, err := r.tree()
	if err != nil {
		return nil, fmt.Errorf("read tree of image: %w", err)
	}
	return root, nil
}

// readAll reads the image without believing its size before the bytes came.
func (img *Image) readAll() ([]byte, error) {
	all := make([]byte, 0, min(img.size, 16<<20))
	for int64(len(all)) < img.size {
		if len(all) == cap(all) {
			all = append(make([]byte, 0, min(img.size, 2*int64(cap(all)))), all...)
		}
		b := all[len(all):cap(all)]
		n, err := img.r.ReadAt(b, int64(len(all)))
		if n < len(b) {
			if errors.Is(err, io.EOF) {
				return nil, errs.New(errs.Invalid, "the image ends early")
			}
			return nil, fmt.Errorf("read image: %w", err)
		}
		all = all[:cap(all)]
	}
	return all, nil
}

// Objects lists the digests of all bodies that are kept as objects, each
// once, in their order.
func (img *Image) Objects() ([]tree.Digest, error) {
	root, err := img.Tree()
	if err != nil {
		return nil, err
	}
	return tree.Objects(root), nil
}
