package object

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// chunk is the grain in which zeros are left out as holes.
const chunk = 64 << 10

var zeros [chunk]byte

// fill writes a whole body to a new file.
func fill(fd int, body []byte) error {
	if len(body) < chunk {
		return writeAll(fd, body, 0)
	}
	hole, err := writeSparse(fd, body, 0)
	if err == nil && hole {
		err = unix.Ftruncate(fd, int64(len(body)))
	}
	return err
}

// writeSparse writes what is not zeros of p, neighbours at once. hole says
// that the end was left out.
func writeSparse(fd int, p []byte, offset int64) (hole bool, err error) {
	start := 0
	for at := 0; at < len(p); at += chunk {
		end := min(at+chunk, len(p))
		if hole = bytes.Equal(p[at:end], zeros[:end-at]); !hole {
			continue
		}
		if err := writeAll(fd, p[start:at], offset+int64(start)); err != nil {
			return false, err
		}
		start = end
	}
	return hole, writeAll(fd, p[start:], offset+int64(start))
}

func writeAll(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// Bodies of up to held bytes wait in memory until their digest is known, for
// they may be here already; all that are on their way together take at most
// heldTogether.
const (
	held         = 8 << 20
	heldTogether = 64 << 20
)

// Writer takes a body piece by piece. It must be committed or aborted.
type Writer struct {
	batch  *Batch
	hash   hash.Hash
	size   int64
	blocks []*[]byte // of which the body is in all but the last to the brim
	fd     int       // -1 while the body is in blocks
	name   string    // of the temporary file
	hole   bool      // the end is not written
	err    error
}

// Create begins a body that is not in memory whole.
func (b *Batch) Create() (*Writer, error) {
	if b.ended.Load() {
		return nil, errs.New(errs.Conflict, "store object: the batch has ended")
	}
	return &Writer{batch: b, fd: -1, hash: sha256.New()}, nil
}

// create makes a temporary file.
func (s *Store) create() (fd int, name string, err error) {
	name = "tmp-" + strconv.FormatUint(s.temporary.Add(1), 36)
	fd, err = unix.Openat(s.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	return fd, name, errs.Full(err)
}

// Write implements io.Writer. Pieces of many kilobytes are best.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil || len(p) == 0 {
		return 0, w.err
	}
	w.hash.Write(p)
	if w.fd < 0 && !w.hold(p) {
		if w.err = w.spill(); w.err != nil {
			return 0, w.err
		}
	}
	if w.fd >= 0 {
		if w.hole, w.err = writeSparse(w.fd, p, w.size); w.err != nil {
			w.err = errs.Full(w.err)
			return 0, w.err
		}
	}
	w.size += int64(len(p))
	return len(p), nil
}

// hold keeps p in memory, unless that is too much.
func (w *Writer) hold(p []byte) bool {
	s := w.batch.store
	if w.size+int64(len(p)) > held {
		return false
	}
	for need := int(w.size) + len(p); len(w.blocks)*Block < need; {
		if s.held.Add(Block) > heldTogether {
			s.held.Add(-Block)
			return false
		}
		w.blocks = append(w.blocks, w.batch.Lend())
	}
	for at := int(w.size); len(p) > 0; {
		n := copy((*w.blocks[at/Block])[at%Block:], p)
		p, at = p[n:], at+n
	}
	return true
}

// spill goes over to a temporary file.
func (w *Writer) spill() error {
	fd, name, err := w.batch.store.create()
	if err != nil {
		return err
	}
	w.fd, w.name = fd, name
	w.hole, err = w.unload(fd)
	return errs.Full(err)
}

// unload writes what is held to fd.
func (w *Writer) unload(fd int) (hole bool, err error) {
	left := w.size
	for i, block := range w.blocks {
		n := min(left, Block)
		if n == 0 {
			break
		}
		if hole, err = writeSparse(fd, (*block)[:n], int64(i)*Block); err != nil {
			return false, err
		}
		left -= n
	}
	w.release()
	return hole, nil
}

func (w *Writer) release() {
	for _, block := range w.blocks {
		w.batch.GiveBack(block)
		w.batch.store.held.Add(-Block)
	}
	w.blocks = nil
}

// Commit stores the body.
func (w *Writer) Commit() (d tree.Digest, err error) {
	defer w.Abort()
	if w.err != nil {
		return d, w.err
	}
	w.hash.Sum(d[:0])
	if w.fd < 0 {
		return d, w.batch.add(d, func(dir int, name string) error {
			return createWith(dir, name, func(fd int) error {
				hole, err := w.unload(fd)
				if err == nil && hole {
					err = unix.Ftruncate(fd, w.size)
				}
				return err
			})
		})
	}
	if w.hole {
		if err := unix.Ftruncate(w.fd, w.size); err != nil {
			return d, errs.Full(err)
		}
	}
	return d, w.batch.add(d, func(dir int, name string) error { return w.batch.store.place(w.name, dir, name) })
}

// Replace stores the body in place of what is there, where want asks for that,
// and says whether it did. Otherwise the body is dropped.
func (w *Writer) Replace(want func(tree.Digest) bool) (bool, error) {
	defer w.Abort()
	if w.err != nil {
		return false, w.err
	}
	var d tree.Digest
	if w.hash.Sum(d[:0]); !want(d) {
		return false, nil
	}
	if w.fd < 0 {
		if err := w.spill(); err != nil {
			return false, err
		}
	}
	if err := w.batch.store.replace(d, w.fd, w.name, w.size); err != nil {
		return false, fmt.Errorf("replace object %x: %w", d, errs.Full(err))
	}
	return true, nil
}

// place moves a temporary file to its name, unless there is one. Nobody else
// makes a file of that name meanwhile, so two steps are as good as one.
func (s *Store) place(temporary string, dir int, name string) error {
	err := unix.Renameat2(s.fd, temporary, dir, name, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != unix.ENOENT {
		if err == nil {
			err = unix.EEXIST
		}
		return err
	}
	return unix.Renameat(s.fd, temporary, dir, name)
}

// Abort drops the body unless it is committed.
func (w *Writer) Abort() {
	w.release()
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
		_ = unix.Unlinkat(w.batch.store.fd, w.name, 0) // where it is no longer, after Commit, nothing happens
		w.fd = -1
	}
	if w.err == nil {
		w.err = errs.New(errs.Conflict, "the body is committed or dropped already")
	}
}

// Lend gives room for one Block, which GiveBack returns.
func (b *Batch) Lend() *[]byte { return b.store.blocks.Get().(*[]byte) }

// GiveBack ends what Lend began.
func (b *Batch) GiveBack(block *[]byte) { b.store.blocks.Put(block) }
