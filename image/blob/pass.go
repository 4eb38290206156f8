package blob

import (
	"context"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// Reading is a blob while it is read: a Stream, or a Passing.
type Reading interface {
	io.ReadCloser
	Origin() Origin
	// Resumed is how many bytes an earlier attempt had left.
	Resumed() int64
}

// Pass opens blob d as Stream does, but stores nothing: what is not here
// passes by and is only verified. Two who want the same blob each fetch it,
// and what breaks off begins anew.
func (s *Store) Pass(ctx context.Context, d digest.Digest, size int64, source Source) (Reading, error) {
	if s.Has(d) {
		return s.Stream(ctx, d, size, source)
	}
	if _, err := s.path(d); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, err := source(ctx, 0)
	if err != nil {
		cancel()
		return nil, err
	}
	return s.ahead(Verified(r, d, size), cancel), nil
}

// ahead reads a blob some pieces ahead of who wants it, so that the network is
// not idle while they unpack, and hashing has a processor of its own.
type ahead struct {
	*Passing
	cancel  context.CancelFunc
	reading sync.WaitGroup
	full    chan piece
	empty   chan *[]byte
	rest    []byte
	held    *[]byte // what rest is a part of
	err     error
	closed  bool
	put     func(any)
}

type piece struct {
	buf *[]byte
	n   int
	err error
}

// piecesAhead is how many buffers one blob has on the way.
const piecesAhead = 4

func (s *Store) ahead(p *Passing, cancel context.CancelFunc) *ahead {
	a := &ahead{Passing: p, cancel: cancel, full: make(chan piece, piecesAhead), empty: make(chan *[]byte, piecesAhead), put: s.buffers.Put}
	for range piecesAhead {
		a.empty <- s.buffers.Get().(*[]byte)
	}
	a.reading.Go(func() {
		defer close(a.full)
		for buf := range a.empty {
			n, err := p.Read(*buf)
			a.full <- piece{buf, n, err}
			if err != nil {
				return
			}
		}
	})
	return a
}

func (a *ahead) Read(b []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.held != nil {
			a.empty <- a.held
			a.held = nil
		}
		next := <-a.full // after an error nothing is asked for any more
		a.held, a.rest, a.err = next.buf, (*next.buf)[:next.n], next.err
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close lets go of the source, wherever reading ahead is.
func (a *ahead) Close() error {
	if a.closed {
		return nil
	}
	a.closed = true
	a.cancel()
	close(a.empty)
	for next := range a.full {
		a.put(next.buf)
	}
	a.reading.Wait()
	for buf := range a.empty {
		a.put(buf)
	}
	if a.held != nil {
		a.put(a.held)
		a.held = nil
	}
	return a.Passing.Close()
}

// Passing is a blob that is verified while it passes by. Read answers io.EOF
// only when size and digest are right; else errs.Invalid, or errs.Unavailable
// where it ended too early.
type Passing struct {
	r      io.ReadCloser
	digest digest.Digest
	size   int64
	read   int64
	hash   hash.Hash
	err    error // how it ended
}

// Verified makes a Passing of r, which must be blob d of size bytes.
func Verified(r io.ReadCloser, d digest.Digest, size int64) *Passing {
	return &Passing{r: r, digest: d, size: size, hash: d.Algorithm().Hash()}
}

// Origin is always Download.
func (*Passing) Origin() Origin { return Download }

// Resumed is always 0.
func (*Passing) Resumed() int64 { return 0 }

func (p *Passing) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.r.Read(b)
	p.read += int64(n)
	p.hash.Write(b[:n])
	switch {
	case p.read > p.size:
		p.err = errs.New(errs.Invalid, "blob %s is longer than the %d bytes it should have", p.digest, p.size)
		return 0, p.err
	case errors.Is(err, io.EOF):
		p.err = p.verify()
	case err != nil:
		p.err = err
	}
	return n, p.err
}

func (p *Passing) verify() error {
	if p.read < p.size {
		return errs.New(errs.Unavailable, "blob %s ended after %d of %d bytes", p.digest, p.read, p.size)
	}
	if got := digest.NewDigest(p.digest.Algorithm(), p.hash); got != p.digest {
		return errs.New(errs.Invalid, "content does not match its digest: wanted %s, got %s", p.digest, got)
	}
	return io.EOF
}

// Close lets go of the source.
func (p *Passing) Close() error { return p.r.Close() }
