// Package push sends images to registries: what is there already is
// skipped, what another repository of the same registry has is mounted, the
// rest is uploaded, blobs before the manifests that need them.
package push

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"berth/base/errs"
	"berth/image/reference"
	"berth/image/remote"
	"berth/spec"
)

// every is how often a running upload reports, at most.
const every = 100 * time.Millisecond

// Source is where the image's parts are; blob.Store is one.
type Source interface {
	// Read returns a whole manifest or index. NotFound: it is not here.
	Read(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
	// Has says whether a blob is here, or whether Open knows where to get it.
	Has(d digest.Digest) bool
	// Open opens a blob at offset: anew where an upload broke off. A blob that
	// the registry has already is never opened.
	Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error)
}

// Config is what a Pusher works with.
type Config struct {
	Source Source
	Remote remote.Config
	// Parallel is how many blobs of one image go up at a time; 4 if zero.
	Parallel int
	// Elsewhere, if set, names repositories that may hold a blob; those on
	// the same registry are offered for mounting.
	Elsewhere func(d digest.Digest) []reference.Name
	// Pushed, if set, hears at the end which parts the repository has now.
	Pushed func(all []digest.Digest)
}

// Pusher sends images. Safe for concurrent use.
type Pusher struct{ cfg Config }

// New returns a Pusher.
func New(cfg Config) *Pusher {
	if cfg.Parallel == 0 {
		cfg.Parallel = 4
	}
	return &Pusher{cfg: cfg}
}

// Push sends target, an index or a manifest, under the name of req, and
// returns what the name then stands for. Where an index is only partly here
// it is what is here: the one manifest, or a smaller index. report may be
// nil; it is called from one goroutine at a time.
func (p *Pusher) Push(ctx context.Context, req spec.PushRequest, target ocispec.Descriptor, report func(spec.Progress)) (ocispec.Descriptor, error) {
	none := ocispec.Descriptor{}
	name, err := reference.Parse(req.Reference)
	if err != nil {
		return none, err
	}
	if name.Untagged() {
		return none, errs.New(errs.Invalid, "push needs a name with a tag, not with a digest: %s", name.Familiar())
	}
	j := &job{cfg: p.cfg, name: name, report: report, planned: map[digest.Digest]bool{}}
	if err := j.plan(ctx, target, req.Platform); err != nil {
		return none, fmt.Errorf("push %s: %w", name.Familiar(), err)
	}
	j.repo, err = remote.Open(ctx, p.cfg.Remote, name, remote.Access{Auth: req.Auth, Insecure: req.Insecure, Push: true, Retrying: j.retrying})
	if err != nil {
		return none, err
	}
	defer j.repo.Close()
	if err := j.send(ctx); err != nil {
		return none, fmt.Errorf("push %s: %w", name.Familiar(), err)
	}
	if p.cfg.Pushed != nil {
		p.cfg.Pushed(j.parts())
	}
	return j.root.desc, nil
}

// job is one push.
type job struct {
	cfg  Config
	name reference.Name
	repo *remote.Repository

	planned   map[digest.Digest]bool
	blobs     []ocispec.Descriptor
	manifests []document // children first
	root      document   // gets the tag

	mu     sync.Mutex
	report func(spec.Progress)
}

// parts lists what the repository has after the job.
func (j *job) parts() []digest.Digest {
	all := []digest.Digest{j.root.desc.Digest}
	for _, m := range j.manifests {
		all = append(all, m.desc.Digest)
	}
	for _, b := range j.blobs {
		all = append(all, b.Digest)
	}
	return all
}

// document is a manifest or index with its bytes.
type document struct {
	desc ocispec.Descriptor
	body []byte
}

func (j *job) send(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(j.cfg.Parallel)
	for _, b := range j.blobs {
		g.Go(func() error { return j.blob(gctx, b) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, m := range j.manifests {
		if err := j.repo.PutManifest(ctx, m.desc, m.body, ""); err != nil {
			return fmt.Errorf("manifest %s: %w", m.desc.Digest, err)
		}
	}
	if err := j.repo.PutManifest(ctx, j.root.desc, j.root.body, j.name.Tag()); err != nil {
		return fmt.Errorf("tag %s: %w", j.name.Tag(), err)
	}
	j.tell(spec.Progress{Phase: spec.Pushing, Item: j.name.String(), Status: "complete"})
	return nil
}

// blob makes one blob appear in the repository, the cheapest way.
func (j *job) blob(ctx context.Context, b ocispec.Descriptor) error {
	e := spec.Progress{Phase: spec.Pushing, Item: b.Digest.String(), Total: b.Size}
	there, err := j.repo.Exists(ctx, b)
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	if there {
		e.Status = "exists"
		j.tell(e)
		return nil
	}
	if j.mount(ctx, b) {
		e.Status = "mounted"
		j.tell(e)
		return nil
	}
	j.tell(e)
	if err := j.repo.Upload(ctx, b, j.content(b)); err != nil {
		return err
	}
	e.Current, e.Status = b.Size, "complete"
	j.tell(e)
	return nil
}

// mount tries the repositories that may have b. That one does not is no
// failure: the upload follows.
func (j *job) mount(ctx context.Context, b ocispec.Descriptor) bool {
	if j.cfg.Elsewhere == nil {
		return false
	}
	tried := []string{j.name.Path()}
	for _, n := range j.cfg.Elsewhere(b.Digest) {
		if n.Domain() != j.name.Domain() || slices.Contains(tried, n.Path()) || len(tried) > 4 {
			continue
		}
		tried = append(tried, n.Path())
		if ok, err := j.repo.Mount(ctx, b, n.Path()); err == nil && ok {
			return true
		}
	}
	return false
}

// content opens a blob for the upload and counts what goes up.
func (j *job) content(b ocispec.Descriptor) remote.Content {
	return func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		r, err := j.cfg.Source.Open(ctx, b.Digest, offset)
		if err != nil {
			return nil, err
		}
		c := &counter{ReadCloser: r, job: j, event: spec.Progress{Phase: spec.Pushing, Item: b.Digest.String(), Total: b.Size}, last: time.Now()}
		c.at.Store(offset)
		return c, nil
	}
}

// counter is a blob on its way up. Other ways to read it are hidden, so that
// all bytes go through Read.
type counter struct {
	io.ReadCloser
	job   *job
	event spec.Progress
	at    atomic.Int64
	last  time.Time
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	at := c.at.Add(int64(n))
	if now := time.Now(); now.Sub(c.last) >= every {
		c.last = now
		e := c.event
		e.Current = at
		c.job.tell(e)
	}
	return n, err
}

func (j *job) retrying(err error, _ time.Duration) {
	j.tell(spec.Progress{Phase: spec.Pushing, Status: "retrying: " + err.Error()})
}

func (j *job) tell(e spec.Progress) {
	if j.report == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report(e)
}
