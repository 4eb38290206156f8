package pull

import (
	"errors"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/blob"
	"berth/spec"
)

type readCloser = io.ReadCloser

// every is how often a running download reports, at most.
const every = 100 * time.Millisecond

// Stream is a layer's blob that reports how far it is.
type Stream struct {
	blob.Reading
	image   *Image
	layer   ocispec.Descriptor
	free    func() // gives the slot back
	current int64
	last    time.Time
	ended   bool
}

func (s *Stream) begin() {
	e := spec.Progress{Phase: spec.Fetching, Item: s.layer.Digest.String(), Total: s.layer.Size, Current: s.Resumed()}
	if o := s.Origin(); o != blob.Download {
		e.Status = string(o)
	}
	s.image.progress.send(e)
}

func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.Reading.Read(p)
	s.current += int64(n)
	if errors.Is(err, io.EOF) && !s.ended {
		s.ended = true
		s.free()
		s.report("complete")
	} else if n > 0 && time.Since(s.last) >= every && s.Origin() != blob.Stored {
		s.report("")
	}
	return n, err
}

func (s *Stream) report(status string) {
	s.last = time.Now()
	s.image.progress.send(spec.Progress{
		Phase: spec.Fetching, Item: s.layer.Digest.String(), Current: max(s.current, s.Resumed()), Total: s.layer.Size, Status: status,
	})
}

// Close lets go of the layer: see blob.Stream.Close.
func (s *Stream) Close() error {
	s.free()
	return s.Reading.Close()
}

// Tar is an uncompressed layer.
type Tar struct {
	io.ReadCloser
	stream *Stream
}

func openTar(st *Stream, limit int64) (*Tar, error) {
	u, _, err := blob.Uncompress(st, limit)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return &Tar{u, st}, nil
}

// Close verifies what was not read, for only the whole blob has a digest,
// and closes the stream. After a failed Read it does not matter.
func (t *Tar) Close() error { return errors.Join(t.ReadCloser.Close(), t.stream.Close()) }

// Finish reads to the end, so that all is verified. Call it after a tar
// reader is done and before Close.
func (t *Tar) Finish() error {
	if _, err := io.Copy(io.Discard, t.ReadCloser); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, t.stream)
	return err
}
