package transfer

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/errs"
	"berth/face/containerd/wire"
)

// exported makes an archive's destination of its message. The library makes
// one, too; but then the call is answered while the client has yet to write the
// archive's end, and clients stop at the answer.
func (s *Service) exported(ctx context.Context, message *anypb.Any) (*exporting, error) {
	var m transfertypes.ImageExportStream
	if err := typeurl.UnmarshalTo(message, &m); err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", message.GetTypeUrl(), err)
	}
	stream, err := s.Streams.Get(ctx, m.Stream)
	if err != nil {
		return nil, err
	}
	var opts []archive.ExportOpt
	for _, p := range types.OCIPlatformFromProto(m.Platforms) {
		opts = append(opts, archive.WithPlatform(p))
	}
	for set, opt := range map[*bool]archive.ExportOpt{
		&m.AllPlatforms: archive.WithAllPlatforms, &m.SkipCompatibilityManifest: archive.WithSkipCompatibilityManifest,
		&m.SkipNonDistributable: archive.WithSkipNonDistributableBlobs,
	} {
		if *set {
			opts = append(opts, opt)
		}
	}
	out := newOutput(ctx, stream)
	return &exporting{archive.NewImageExportStream(out, m.MediaType, opts...), out}, nil
}

// exporting is an archive that a client reads.
type exporting struct {
	*archive.ImageExportStream
	out *output
}

// A client grants bytes in windows of this size: one at first, and another as
// soon as it has taken so many that less than one is left.
const (
	window = 64 << 10
	piece  = window / 2
)

// output sends bytes to a client. It keeps one window's worth back until Close,
// which sends it as one message: after that one the client has less than a
// window left, so that a further grant says that it has taken all.
type output struct {
	ctx    context.Context //nolint:containedctx // io.Writer has no room for it
	stream streaming.Stream
	held   []byte
	grants sync.WaitGroup

	mu    sync.Mutex
	room  int64 // that the client has granted and not used
	grown chan struct{}
	gone  error // why there will be no more grants
	ended bool
}

func newOutput(ctx context.Context, stream streaming.Stream) *output {
	o := &output{ctx: ctx, stream: stream, grown: make(chan struct{})}
	o.grants.Go(o.readGrants)
	return o
}

func (o *output) readGrants() {
	for {
		message, err := o.stream.Recv()
		var update transfertypes.WindowUpdate
		if err == nil {
			err = typeurl.UnmarshalTo(message, &update)
		}
		o.mu.Lock()
		o.room += int64(update.Update)
		o.gone = err
		close(o.grown)
		o.grown = make(chan struct{})
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// await waits until the client has granted n bytes that were not used, and says
// how many it has.
func (o *output) await(ctx context.Context, n int) (int, error) {
	for {
		o.mu.Lock()
		room, grown, gone := o.room, o.grown, o.gone
		o.mu.Unlock()
		switch {
		case room >= int64(n):
			return int(room), nil
		case errors.Is(gone, io.EOF):
			return 0, errs.New(errs.Canceled, "the client reads no more of the archive")
		case gone != nil:
			return 0, gone
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (o *output) Write(p []byte) (int, error) {
	o.held = append(o.held, p...)
	if len(o.held) < window+piece {
		return len(p), nil
	}
	return len(p), o.sendTo(window)
}

// sendTo sends what is held, but for the last bytes.
func (o *output) sendTo(last int) error {
	sent := 0
	defer func() { o.held = append(o.held[:0], o.held[sent:]...) }()
	for len(o.held)-sent > last {
		room, err := o.await(o.ctx, 1)
		if err != nil {
			return err
		}
		n := min(room, piece, len(o.held)-sent-last)
		if err := o.send(o.held[sent : sent+n]); err != nil {
			return err
		}
		sent += n
	}
	return nil
}

// send sends one message.
func (o *output) send(data []byte) error {
	message, err := wire.Pack(&transfertypes.Data{Data: data})
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.room -= int64(len(data))
	o.mu.Unlock()
	return o.stream.Send(message)
}

// patience is how long a client may take to say that it has taken the end. One
// that grants in other ways than those we know does not say so at all.
const patience = 2 * time.Second

// Close sends the rest and returns when the client has it all.
func (o *output) Close() error {
	if o.ended {
		return nil
	}
	o.ended = true
	defer o.drop()
	if err := o.sendTo(window); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(o.ctx, patience)
	defer cancel()
	if _, err := o.await(ctx, len(o.held)); err != nil {
		return o.sendTo(0)
	}
	if err := o.send(o.held); err != nil {
		return err
	}
	if _, err := o.await(ctx, window); err != nil && ctx.Err() == nil {
		return err
	}
	return o.ctx.Err()
}

// drop ends the stream.
func (o *output) drop() {
	o.ended = true
	_ = o.stream.Close()
	o.grants.Wait()
}
