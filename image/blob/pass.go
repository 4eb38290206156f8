package blob

import (
	"context"
	"errors"
	"hash"
	"io"

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
	r, err := source(ctx, 0)
	if err != nil {
		return nil, err
	}
	return Verified(r, d, size), nil
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
