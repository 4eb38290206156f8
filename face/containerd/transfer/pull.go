package transfer

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/local"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	nodeimage "berth/node/image"
)

// pull brings an image from a registry.
func (s *Service) pull(ctx context.Context, from *registry.OCIRegistry, to *image.Store, say transfer.ProgressFunc) error {
	tell(say, "Resolving from "+from.String())
	name, desc, err := from.Resolve(ctx)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", from.Image(), err)
	}
	if desc.MediaType == images.MediaTypeDockerSchema1Manifest {
		return errs.New(errs.Invalid, "%s is an image of Docker's schema 1, which is no longer supported", name)
	}
	tell(say, "Pulling from "+from.String())
	if say != nil {
		say(transfer.Progress{Event: "fetching image content", Name: name, Desc: &desc})
	}
	fetcher, err := from.Fetcher(ctx, name)
	if err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	if desc, err = s.fetch(ctx, name, desc, fetcher, to, say); err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	if err := s.name(ctx, to, desc, say); err != nil {
		return err
	}
	tell(say, "Completed pull from "+from.String())
	return nil
}

// fetch brings all that an image consists of, and unpacks what is wanted.
func (s *Service) fetch(ctx context.Context, name string, desc ocispec.Descriptor, fetcher transfer.Fetcher, to *image.Store, say transfer.ProgressFunc) (ocispec.Descriptor, error) {
	watch := s.watch(ctx, name, say)
	defer watch.end()
	origin, err := docker.AppendDistributionSourceLabel(s.Content, name)
	if err != nil {
		return desc, err
	}
	bring := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		watch.tracker.Add(desc)
		err := remotes.Fetch(ctx, s.Content, fetcher, desc)
		if errdefs.IsAlreadyExists(err) {
			watch.exists(ctx, desc)
			err = nil
		}
		return nil, err
	})
	legacy := &legacyConfig{}
	children := to.ImageFilter(images.ChildrenHandler(s.Content), s.Content)
	below := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		all, err := children(ctx, desc)
		watch.tracker.AddChildren(desc, all)
		return all, err
	})
	u := s.newUnpacking(to, watch)
	u.source = source(fetcher)
	if err := images.Dispatch(ctx, u.handler(images.Handlers(bring, images.HandlerFunc(legacy.look), below, origin)), nil, desc); err != nil {
		return desc, err
	}
	if legacy.found {
		return docker.ConvertManifest(ctx, s.Content, desc)
	}
	return desc, nil
}

// source opens layers out of a registry.
func source(fetcher transfer.Fetcher) nodeimage.Source {
	return func(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
		r, err := fetcher.Fetch(ctx, desc)
		if err != nil || offset == 0 {
			return r, err
		}
		if at, ok := r.(io.Seeker); ok {
			_, err = at.Seek(offset, io.SeekStart)
		} else {
			_, err = io.CopyN(io.Discard, r, offset)
		}
		if err != nil {
			_ = r.Close()
			return nil, err
		}
		return r, nil
	}
}

// legacyConfig sees images of old registries, whose configuration has a type
// that says nothing.
type legacyConfig struct {
	mu    sync.Mutex
	found bool
}

func (l *legacyConfig) look(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found = l.found || desc.MediaType == docker.LegacyConfigMediaType
	return nil, nil
}

// name makes images of the namespace as the destination says.
func (s *Service) name(ctx context.Context, to *image.Store, desc ocispec.Descriptor, say transfer.ProgressFunc) error {
	saved, err := to.Store(ctx, desc, s.Images)
	if err != nil {
		return err
	}
	for _, one := range saved {
		if say != nil {
			say(transfer.Progress{Event: "saved", Name: one.Name, Desc: &one.Target})
		}
	}
	return nil
}

func tell(say transfer.ProgressFunc, event string) {
	if say != nil {
		say(transfer.Progress{Event: event})
	}
}

var _ local.StatusTracker = (*watch)(nil)
