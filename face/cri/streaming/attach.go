package streaming

import (
	"context"
	"errors"
	"io"

	"berth/base/errs"
	"berth/spec"
)

// attach joins a client with a container until that has ended.
func (s *Server) attach(ctx context.Context, t ticket, client streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ref := s.Ref(t.id)
	output, err := s.Containers.Output(ctx, ref)
	if err != nil {
		return err
	}
	defer output.Close()
	if client.stdin != nil {
		stdin, err := s.stdin(ctx, ref)
		if err != nil {
			return err
		}
		s.pumps.Go(func() {
			if _, err := io.Copy(stdin, client.stdin); err == nil && ctx.Err() == nil {
				_ = stdin.Close()
			}
		})
	}
	s.follow(ctx, client.resize, func(size spec.Size) error { return s.Containers.Resize(ctx, ref, size) })
	gone := errors.New("the client has gone")
	err = output.Each(ctx, func(stderr bool, data []byte) error {
		to := client.stdout
		if stderr {
			to = client.stderr
		}
		if to == nil {
			return nil
		}
		if _, err := to.Write(data); err != nil {
			return gone
		}
		return nil
	})
	if errors.Is(err, gone) {
		return nil
	}
	return err
}

// stdin is the container's. Of one that was made without, what people type goes
// nowhere, as with other runtimes: kubectl attach -i asks without looking, and
// what the container says is what they came for.
func (s *Server) stdin(ctx context.Context, ref string) (io.WriteCloser, error) {
	stdin, err := s.Containers.Stdin(ctx, ref)
	if errors.Is(err, errs.Conflict) {
		return nowhere{}, nil
	}
	return stdin, err
}

// nowhere takes everything.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) Close() error                { return nil }
