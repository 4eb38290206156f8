package object

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// Batch is bodies that are stored together, as those of a layer. What it
// stored or found is not swept before End. For concurrent use, but for End.
type Batch struct {
	store *Store
	ended atomic.Bool
	// held is what the batch pinned, by shard, with that shard's lock.
	held [256][]key
}

// Begin opens a batch. It waits while the bodies of a crashed process are
// read again.
func (s *Store) Begin(ctx context.Context) (*Batch, error) {
	select {
	case <-s.recovered:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := s.epoch.enter(); err != nil {
		return nil, fmt.Errorf("begin to store objects: %w", errs.Full(err))
	}
	return &Batch{store: s}, nil
}

// End lets go of what the batch held: from now on it stays for as long as
// something names it. Ending again does nothing.
func (b *Batch) End() {
	if b.ended.Swap(true) {
		return
	}
	b.store.epoch.leave()
	b.store.sweeps.release(b)
}

// Put stores a body that is in memory.
func (b *Batch) Put(body []byte) (tree.Digest, error) {
	d := tree.Digest(sha256.Sum256(body))
	return d, b.add(d, func(dir int, name string) error { return create(dir, name, body) })
}

// PutFrom stores size bytes of r, or all of it where size is negative, and
// says how many those were.
func (b *Batch) PutFrom(r io.Reader, size int64) (tree.Digest, int64, error) {
	block := b.store.blocks.Get().(*[]byte)
	defer b.store.blocks.Put(block)
	if size >= 0 {
		r = io.LimitReader(r, size)
	}
	n, err := io.ReadFull(r, *block)
	switch {
	case err == io.EOF, err == io.ErrUnexpectedEOF: //nolint:errorlint // ReadFull's own
		if size >= 0 && int64(n) < size {
			return tree.Digest{}, 0, io.ErrUnexpectedEOF
		}
		d, err := b.Put((*block)[:n])
		return d, int64(n), err
	case err != nil:
		return tree.Digest{}, 0, err
	}
	w, err := b.Create()
	if err != nil {
		return tree.Digest{}, 0, err
	}
	defer w.Abort()
	for err == nil {
		if _, err := w.Write((*block)[:n]); err != nil {
			return tree.Digest{}, 0, err
		}
		n, err = r.Read(*block)
	}
	if _, e := w.Write((*block)[:n]); e != nil {
		return tree.Digest{}, 0, e
	}
	if !errors.Is(err, io.EOF) {
		return tree.Digest{}, 0, err
	}
	if w.size < size {
		return tree.Digest{}, 0, io.ErrUnexpectedEOF
	}
	d, err := w.Commit()
	return d, w.size, err
}

// Pin keeps the body d from being swept until End, and says whether it is
// here.
func (b *Batch) Pin(d tree.Digest) bool {
	sh, k := b.store.shard(d), keyOf(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	b.hold(sh, k, d)
	for sh.isBusy(k) { // somebody is storing or sweeping it
		sh.done.Wait()
	}
	return sh.load(b.store) == nil && sh.known.has(k)
}

// Has says whether the body d is here. It may be swept unless it is pinned.
func (b *Batch) Has(d tree.Digest) bool { return b.store.Has(d) }

func (b *Batch) hold(sh *shard, k key, d tree.Digest) {
	sh.pinned[k]++
	b.held[d[0]] = append(b.held[d[0]], k)
}

// add has write make the file of d, unless it is here.
func (b *Batch) add(d tree.Digest, write func(dir int, name string) error) error {
	if b.ended.Load() {
		return errs.New(errs.Conflict, "store object: the batch has ended")
	}
	sh, k := b.store.shard(d), keyOf(d)
	sh.mu.Lock()
	err := sh.make(b.store)
	if err != nil {
		sh.mu.Unlock()
		return err
	}
	b.hold(sh, k, d)
	if !sh.isBusy(k) && sh.known.has(k) {
		sh.mu.Unlock()
		return nil
	}
	sh.claim(k)
	here := sh.known.has(k)
	sh.mu.Unlock()
	if !here {
		err = b.store.write(sh, d, write)
	}
	sh.mu.Lock()
	if err == nil {
		sh.known.add(k)
	}
	sh.release(k)
	sh.mu.Unlock()
	if err != nil {
		return fmt.Errorf("store object %x: %w", d, errs.Full(err))
	}
	return nil
}

// write calls write for the claimed digest d. A file that is in the way, of
// which the store did not know, is taken only if it is whole.
func (s *Store) write(sh *shard, d tree.Digest, write func(dir int, name string) error) error {
	if err := s.epoch.look(); err != nil {
		return err
	}
	if s.watched.Load() {
		return s.writeAside(sh, d, write)
	}
	file := name(d)
	err := s.tidy(sh, file, write(sh.dir, file))
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := s.check(sh.dir, d); !isDamage(err) {
		return err
	}
	if err := unix.Unlinkat(sh.dir, file, 0); err != nil {
		return err
	}
	return s.tidy(sh, file, write(sh.dir, file))
}

// tidy deletes the file of a body whose write failed with err.
func (s *Store) tidy(sh *shard, file string, err error) error {
	if errors.Is(err, errMade) {
		if e := unix.Unlinkat(sh.dir, file, 0); e != nil && e != unix.ENOENT {
			s.epoch.soil() // it is damaged, and the next process must look at it
		}
	}
	return err
}

// errMade marks the failure of a write that had made its file by then.
var errMade = errors.New("the file is damaged")

type madeError struct{ err error }

func (e *madeError) Error() string   { return e.err.Error() }
func (e *madeError) Unwrap() []error { return []error{e.err, errMade} }

// create makes the file of a body under its final name.
func create(dir int, name string, body []byte) error {
	return createWith(dir, name, func(fd int) error { return fill(fd, body) })
}

func createWith(dir int, name string, fill func(fd int) error) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = fill(fd)
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err != nil {
		return &madeError{err}
	}
	return nil
}
