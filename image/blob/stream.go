package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// Source opens the content of a blob at offset, from wherever it comes. It
// is asked once for a download; to try again is its own business.
type Source func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Origin says where the bytes of a Stream come from.
type Origin string

// The origins.
const (
	Stored   Origin = "exists"  // it was here
	Joined   Origin = "waiting" // somebody else is downloading it
	Download Origin = "fetch"   // this stream began the download
)

// Stream reads one blob while it is being downloaded. However many streams
// want a blob, it is downloaded once, into the store. Read answers io.EOF
// only when the digest has been verified; Close after that waits until the
// blob is durable and says why if it is not. Not for concurrent use.
type Stream struct {
	ctx    context.Context //nolint:containedctx // a stream is one request; io.Reader has no room for it
	store  *Store
	digest digest.Digest
	size   int64
	source Source
	origin Origin
	offset int64
	ended  bool

	file   *os.File // of a stored blob
	flight *flight  // or of one on its way
	mine   bool     // the flight uses source
	stop   func() bool
}

// flight is one download. Its goroutine alone writes; streams read the file
// behind it.
type flight struct {
	done   chan struct{} // closed when the goroutine has gone
	cancel context.CancelFunc

	mu        sync.Mutex
	offset    int64 // where it began
	grown     sync.Cond
	file      *os.File
	inherited bool // file is the readers' to close
	written   int64
	verified  bool
	err       error // set before done is closed
	readers   int
	left      bool // the last reader went; do not join
}

// Stream opens blob d: from disk if it is here, behind another's download
// if there is one, else by a new download from source. ctx bounds the
// stream, not a download that others also want; that ends with its last
// reader and may be resumed.
func (s *Store) Stream(ctx context.Context, d digest.Digest, size int64, source Source) (*Stream, error) {
	if _, err := s.path(d); err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, errs.New(errs.Invalid, "blob %s: size %d", d, size)
	}
	st := &Stream{ctx: ctx, store: s, digest: d, size: size, source: source}
	if err := st.attach(); err != nil {
		return nil, err
	}
	return st, nil
}

// Origin says where the bytes come from.
func (st *Stream) Origin() Origin { return st.origin }

// Resumed is how many bytes an earlier attempt had left.
func (st *Stream) Resumed() int64 {
	if st.flight == nil {
		return 0
	}
	st.flight.mu.Lock()
	defer st.flight.mu.Unlock()
	return st.flight.offset
}

func (st *Stream) attach() error {
	for {
		wait, err := st.tryAttach()
		if wait == nil {
			return err
		}
		select { // a flight that everybody left is on its way out
		case <-wait:
		case <-st.ctx.Done():
			return context.Cause(st.ctx)
		}
	}
}

func (st *Stream) tryAttach() (wait <-chan struct{}, err error) {
	s := st.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[st.digest]; f != nil {
		if !f.join() {
			return f.done, nil
		}
		st.follow(f, Joined)
		return nil, nil
	}
	file, err := s.Reader(st.ctx, st.digest)
	if err == nil {
		st.file, st.origin = file, Stored
		return nil, nil
	}
	if !errors.Is(err, errs.NotFound) {
		return nil, err
	}
	if s.life.Err() != nil {
		return nil, errs.New(errs.Unavailable, "the blob store is closed")
	}
	st.follow(s.takeOff(st), Download)
	return nil, nil
}

func (st *Stream) follow(f *flight, origin Origin) {
	st.flight, st.origin, st.mine = f, origin, origin == Download
	st.stop = context.AfterFunc(st.ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.grown.Broadcast()
	})
}

// takeOff starts the download for its first reader. s.mu is held.
func (s *Store) takeOff(st *Stream) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(st.ctx))
	stop := context.AfterFunc(s.life, cancel)
	f := &flight{done: make(chan struct{}), cancel: cancel, readers: 1}
	f.grown.L = &f.mu
	s.flights[st.digest] = f
	d, size, source := st.digest, st.size, st.source
	s.wg.Go(func() {
		defer stop()
		defer cancel()
		err := s.fly(ctx, f, d, size, source)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.flights, d)
		f.land(err)
	})
	return f
}

// fly downloads, verifies and stores.
func (s *Store) fly(ctx context.Context, f *flight, d digest.Digest, size int64, source Source) (err error) {
	w, err := s.resume(ctx, d, size)
	if err != nil {
		return err
	}
	f.begin(w)
	defer func() { err = errors.Join(err, f.letGo(w)) }()
	if w.offset < size {
		if err := s.transfer(ctx, f, w, source); err != nil {
			return err
		}
	}
	got, err := w.Verify()
	if err != nil {
		return err
	}
	f.publish(w.offset, true)
	_, err = w.publish(got)
	return err
}

func (s *Store) transfer(ctx context.Context, f *flight, w *Writer, source Source) (err error) {
	r, err := source(ctx, w.offset)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for {
		n, readErr := r.Read(*buf)
		if n > 0 {
			if _, err := w.Write((*buf)[:n]); err != nil {
				return err
			}
			f.publish(w.offset, false)
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return nil
		case readErr != nil:
			return fmt.Errorf("fetch blob %s: %w", w.want, readErr)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

func (f *flight) join() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left {
		return false
	}
	f.readers++
	return true
}

func (f *flight) begin(w *Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.file, f.offset, f.written = w.file, w.offset, w.offset
	f.grown.Broadcast()
}

func (f *flight) publish(written int64, verified bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written, f.verified = written, verified
	f.grown.Broadcast()
}

// letGo ends the writing side. Streams that still read take over the file.
func (f *flight) letGo(w *Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers > 0 && f.verified {
		f.inherited, w.file = true, nil
	} else {
		f.file = nil
	}
	return w.Close()
}

// land tells the streams how it ended; Store.mu is held.
func (f *flight) land(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.done)
	f.grown.Broadcast()
}

func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if st.file != nil {
		n, err := st.file.ReadAt(p, st.offset)
		st.offset += int64(n)
		if n > 0 {
			return n, nil
		}
		st.ended = errors.Is(err, io.EOF)
		return 0, err
	}
	for {
		n, err := st.readFlight(p)
		if err == nil || errors.Is(err, io.EOF) || st.mine || st.ctx.Err() != nil || errors.Is(err, errs.Invalid) || errors.Is(err, errs.Exhausted) {
			return n, err
		}
		// The other's source failed, perhaps for want of rights that ours has.
		st.leave()
		if err := st.attach(); err != nil {
			return 0, err
		}
		if st.file != nil {
			return st.Read(p)
		}
	}
}

func (st *Stream) readFlight(p []byte) (int, error) {
	f := st.flight
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case st.ctx.Err() != nil:
			return 0, context.Cause(st.ctx)
		case st.offset < f.written && f.file != nil:
			n := int(min(int64(len(p)), f.written-st.offset))
			file := f.file
			f.mu.Unlock()
			n, err := file.ReadAt(p[:n], st.offset)
			f.mu.Lock()
			st.offset += int64(n)
			if n > 0 {
				return n, nil
			}
			if f.file == file {
				return 0, err
			}
		case f.verified && st.offset >= f.written:
			st.ended = true
			return 0, io.EOF
		case f.landed():
			if f.err == nil {
				return 0, errs.New(errs.Internal, "blob %s: lost while reading", st.digest)
			}
			return 0, f.err
		default:
			f.grown.Wait()
		}
	}
}

func (f *flight) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// Close lets go of the blob. After a Read that gave io.EOF it waits until
// the blob is stored for good.
func (st *Stream) Close() error {
	if st.file != nil {
		return st.file.Close()
	}
	if st.flight == nil {
		return nil
	}
	f := st.flight
	if st.ended {
		<-f.done // syncing; not bounded by ctx, like any fsync
	}
	st.leave()
	if st.ended {
		return f.err
	}
	return nil
}

// leave ends the download if nobody else reads it.
func (st *Stream) leave() {
	f := st.flight
	st.flight = nil
	st.stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	if f.readers > 0 {
		return
	}
	f.left = true
	if !f.verified {
		f.cancel()
	}
	if f.inherited {
		f.file.Close()
		f.file = nil
	}
}
