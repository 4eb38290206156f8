package transfer

import (
	"context"
	"encoding/json"
	"io"
	"maps"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
)

// refSource is the annotation by which image.Store knows that a descriptor's
// other annotations name it.
const refSource = "io.containerd.import.ref-source"

// load brings the images of an archive.
func (s *Service) load(ctx context.Context, from *archive.ImageImportStream, to *image.Store, say transfer.ProgressFunc) error {
	tell(say, "Importing")
	index, err := from.Import(ctx, s.Content)
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // the stream of a client that has gone ends like any other
		return context.Cause(ctx)
	}
	tops, err := s.topLevel(ctx, index)
	if err != nil {
		return err
	}
	watch := s.watch(ctx, "", nil)
	defer watch.end()
	below := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if desc.Digest == index.Digest {
			return tops, nil
		}
		return images.Children(ctx, s.Content, desc)
	})
	u := s.newUnpacking(to, watch)
	u.source = func(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
		at, err := s.Content.ReaderAt(ctx, desc)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(at, offset, desc.Size-offset), at}, nil
	}
	if err := images.WalkNotEmpty(ctx, u.handler(to.ImageFilter(below, s.Content)), index); err != nil {
		return err
	}
	for _, desc := range append([]ocispec.Descriptor{index}, tops...) {
		if err := s.name(ctx, to, desc, say); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	tell(say, "Completed import")
	return nil
}

// topLevel lists what the index of an archive names, marked as such.
func (s *Service) topLevel(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	body, err := content.ReadBlob(ctx, s.Content, desc)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(body, &index); err != nil {
		return nil, errs.New(errs.Invalid, "index of the archive: %w", err)
	}
	for i, one := range index.Manifests {
		marked := maps.Clone(one.Annotations)
		if marked == nil {
			marked = map[string]string{}
		}
		marked[refSource] = "annotation"
		index.Manifests[i].Annotations = marked
	}
	return index.Manifests, nil
}
