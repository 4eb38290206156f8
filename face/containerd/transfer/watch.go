package transfer

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/spec"
)

// watch tells how far a transfer is. Where nobody wants to know, tracker is
// nil, which it takes.
type watch struct {
	tracker *local.ProgressTracker
	content local.StatusTracker
	stop    context.CancelFunc
	work    sync.WaitGroup

	mu     sync.Mutex
	layers map[string]content.Status // by the names that the tracker uses
}

func (s *Service) watch(ctx context.Context, root string, say transfer.ProgressFunc) *watch {
	w := &watch{content: local.NewContentStatusTracker(s.Content), stop: func() {}, layers: map[string]content.Status{}}
	if say == nil {
		return w
	}
	w.tracker = local.NewProgressTracker(root, "downloading")
	ctx, w.stop = context.WithCancel(ctx)
	w.work.Go(func() { w.tracker.HandleProgress(ctx, say, w) })
	return w
}

// end returns once the last was told.
func (w *watch) end() {
	w.stop()
	w.work.Wait()
}

// exists notes what was here, unless it has just been brought.
func (w *watch) exists(ctx context.Context, desc ocispec.Descriptor) {
	w.mu.Lock()
	_, brought := w.layers[remotes.MakeRefKey(ctx, desc)]
	w.mu.Unlock()
	if !brought {
		w.tracker.MarkExists(desc)
	}
}

// layer notes how far a layer is.
func (w *watch) layer(ctx context.Context, desc ocispec.Descriptor, p spec.Progress) {
	if w.tracker == nil {
		return
	}
	switch p.Phase {
	case spec.Fetching:
		w.mu.Lock()
		ref := remotes.MakeRefKey(ctx, desc)
		w.layers[ref] = content.Status{Ref: ref, Offset: p.Current, Total: desc.Size}
		w.mu.Unlock()
	case spec.Unpacking:
		if p.Status == "complete" {
			w.tracker.ExtractProgress(desc, desc.Size)
		}
	}
}

// Active is what the tracker asks from time to time.
func (w *watch) Active(ctx context.Context, filters ...string) (local.ActiveJobs, error) {
	jobs, err := w.content.Active(ctx, filters...)
	return active{w, jobs}, err
}

// Check says whether a blob is here.
func (w *watch) Check(ctx context.Context, d digest.Digest) (bool, error) {
	return w.content.Check(ctx, d)
}

type active struct {
	*watch
	local.ActiveJobs
}

func (a active) Status(ref string) (content.Status, bool) {
	a.mu.Lock()
	status, ok := a.layers[ref]
	a.mu.Unlock()
	if ok && status.Offset < status.Total {
		return status, true
	}
	return a.ActiveJobs.Status(ref)
}
