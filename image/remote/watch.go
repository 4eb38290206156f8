package remote

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// watcher ends a request that makes no progress. Time that the reader of
// the body spends elsewhere does not count.
type watcher struct {
	timer  *time.Timer
	stall  time.Duration
	cancel context.CancelCauseFunc
}

func watch(ctx context.Context, stall time.Duration) (context.Context, *watcher) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watcher{stall: stall, cancel: cancel}
	w.timer = time.AfterFunc(stall, func() { cancel(errStall) })
	return ctx, w
}

// go on waiting for the peer, rest while it is our turn, end for good.
func (w *watcher) goOn() { w.timer.Reset(w.stall) }
func (w *watcher) rest() { w.timer.Stop() }
func (w *watcher) end()  { w.timer.Stop(); w.cancel(nil) }

// watchedBody is the body of an answer.
type watchedBody struct {
	io.ReadCloser
	watch *watcher
	repo  *Repository
	host  docker.RegistryHost
	ctx   context.Context //nolint:containedctx // that of the request, whose cause explains a failed Read
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.goOn()
	n, err := b.ReadCloser.Read(p)
	b.watch.rest()
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.repo.unreachable(b.ctx, b.host, err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.end()
	return b.ReadCloser.Close()
}

// watchedUpload is the body of a request: each part that the peer takes is
// progress.
type watchedUpload struct {
	io.ReadCloser
	watch *watcher
}

func (u *watchedUpload) Read(p []byte) (int, error) {
	u.watch.goOn()
	return u.ReadCloser.Read(p)
}
