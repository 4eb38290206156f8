package layer

import (
	"context"
	"errors"
	"io"

	"berth/base/errs"
)

// source bounds the stream. Once it has failed it stays so.
type source struct {
	ctx  context.Context //nolint:containedctx // lives as long as Read
	r    io.Reader
	left int64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		err = errTooBig
	}
	s.err = err
	return n, err
}

// failed says whether it was the stream that failed, rather than that it
// ended.
func (s *source) failed() bool { return s.err != nil && s.err != io.EOF } //nolint:errorlint // readers return io.EOF itself

var (
	errTooBig = errs.New(errs.Invalid, "the layer unpacks to more bytes than is allowed")
	errHeader = errors.New("damaged header")
)

// blame says whose fault err is: the store's or the stream's, with its own
// kind, or the archive's, which is Invalid.
func (s *stream) blame(err error) error {
	switch {
	case s.failed.Load():
		return s.firstError()
	case s.src.failed() && !errors.Is(s.src.err, io.ErrUnexpectedEOF):
		return s.src.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "the layer is cut short: %w", err)
	case errors.Is(err, errs.Invalid):
		return err
	}
	return errs.New(errs.Invalid, "not a tar archive: %w", err)
}
