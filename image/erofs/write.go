package erofs

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// Write writes the tree root as an image to w, and returns the image's size.
// It holds no more in memory than the places of the inodes. What EROFS cannot
// keep, as an xattr of 64 KiB, is an error of kind Unsupported; what no file
// system has, as a name with a slash, is Invalid.
func Write(w io.Writer, root *tree.Node) (int64, error) {
	p := plan{known: map[*tree.Node]int32{}}
	if err := p.order(root); err != nil {
		return 0, fmt.Errorf("plan image: %w", err)
	}
	if err := p.place(); err != nil {
		return 0, fmt.Errorf("plan image: %w", err)
	}
	sum := sha256.New()
	for _, to := range []io.Writer{sum, w} {
		e := emitter{plan: &p, w: bufio.NewWriterSize(to, 1<<18)}
		if err := e.run(); err != nil {
			return 0, fmt.Errorf("write image: %w", err)
		}
		p.name(sum.Sum(nil))
	}
	return p.size, nil
}

// name gives the image a UUID (version 8) of its bytes without one. By that
// and an inode's number overlayfs remembers what it has copied up; in another
// image, or in one without a UUID, it would take the inode of that number for
// it.
func (p *plan) name(sum []byte) {
	copy(p.uuid[:], sum)
	p.uuid[6] = p.uuid[6]&0x0f | 0x80
	p.uuid[8] = p.uuid[8]&0x3f | 0x80
}

// emitter writes a planned image.
type emitter struct {
	*plan
	w   *bufio.Writer
	at  int64
	buf []byte
}

func (e *emitter) run() error {
	e.write(e.super())
	for i := range e.inodes {
		e.inode(i)
	}
	for i := range e.inodes {
		if in := &e.inodes[i]; in.format != chunkData && in.size > int64(in.tail) {
			e.pad(in.blocks * blockSize)
			e.data(in, false)
		}
	}
	e.pad(e.size)
	return e.w.Flush()
}

func (e *emitter) write(b []byte) {
	_, _ = e.w.Write(b) // Flush tells
	e.at += int64(len(b))
}

var (
	zeros     [blockSize]byte
	noAddress = [4]byte{0xff, 0xff, 0xff, 0xff}
)

func (e *emitter) pad(to int64) {
	for e.at < to {
		e.write(zeros[:min(to-e.at, blockSize)])
	}
}

func (e *emitter) super() []byte {
	block := make([]byte, blockSize)
	b, le := block[superOffset:], binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], featureChecksum|featureMtime|featureFilter)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(e.inodes[0].nid()))
	le.PutUint64(b[16:], uint64(len(e.inodes)))
	le.PutUint32(b[36:], uint32(e.size/blockSize))
	copy(b[uuidOffset:], e.uuid[:])
	le.PutUint32(b[80:], featureChunks)
	le.PutUint32(b[4:], checksum(b))
	return block
}

// checksum is CRC-32C without the last inversion, as the superblock has it.
func checksum(b []byte) uint32 { return ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (e *emitter) inode(i int) {
	in := &e.inodes[i]
	n := in.node
	e.pad(in.offset)
	b, le := append(e.buf[:0], zeros[:inodeSize]...), binary.LittleEndian
	le.PutUint16(b[0:], in.format)
	if in.attrs > 0 {
		le.PutUint16(b[2:], uint16((in.attrs-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	le.PutUint64(b[8:], uint64(in.size))
	switch {
	case in.format == chunkData:
		le.PutUint32(b[16:], maxChunkBits)
	case n.Type() == unix.S_IFCHR || n.Type() == unix.S_IFBLK:
		dev, _ := encodeDevice(n.Rdev)
		le.PutUint32(b[16:], dev)
	case in.size > int64(in.tail):
		le.PutUint32(b[16:], uint32(in.blocks))
	}
	le.PutUint32(b[20:], uint32(i+1))
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Sec))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], in.links)
	if in.attrs > 0 {
		_ = e.attrs.of(n) // was right when it was measured
		b = e.attrs.append(b)
	}
	e.buf = b
	e.write(b)
	if in.tail > 0 {
		e.data(in, true)
	}
	if in.format == chunkData {
		for range chunks(in.size) {
			e.write(noAddress[:])
		}
	}
}

// data writes an inode's data: the tail that follows it, or what is in blocks.
func (e *emitter) data(in *inode, tail bool) {
	n, cut := in.node, int(in.size)-in.tail
	switch {
	case n.IsDir():
		e.folder(in, tail)
	case n.Type() == unix.S_IFLNK && tail:
		e.write([]byte(n.Target[cut:]))
	case n.Type() == unix.S_IFLNK:
		e.write([]byte(n.Target[:cut]))
	case tail:
		e.write(n.Body[cut:])
	default:
		e.write(n.Body[:cut])
	}
}
