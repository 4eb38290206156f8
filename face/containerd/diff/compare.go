package diff

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/blob"
)

// Compare makes a layer of what upper changes against lower and puts it into
// the content. Its blob has label containerd.io/uncompressed.
func (s *Service) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	config := diff.Config{SourceDateEpoch: epoch.FromContext(ctx)}
	for _, set := range opts {
		if err := set(&config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if config.MediaType == "" {
		config.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	if config.Compressor == nil {
		if err := checkMade(config.MediaType); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	change, ok, err := s.Snapshots.Between(ctx, ours(lower), ours(upper))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if !ok {
		return s.comparer.Compare(ctx, lower, upper, append(opts, diff.WithMediaType(config.MediaType))...)
	}
	return s.store(ctx, config, change)
}

func checkMade(mediaType string) error {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
		return nil
	}
	return errs.New(errs.Unsupported, "unsupported diff media type: %.120q", mediaType)
}

// change writes a layer's tar.
type change interface {
	WriteTar(ctx context.Context, w io.Writer) error
}

// store puts a layer into the content.
func (s *Service) store(ctx context.Context, config diff.Config, layer change) (_ ocispec.Descriptor, err error) {
	ref := config.Reference
	if ref == "" {
		ref = "diff-" + rand.Text()
	}
	w, err := content.OpenWriter(ctx, s.Content, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: config.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write the layer: %w", err)
	}
	defer func() {
		err = errors.Join(err, w.Close())
		if err != nil && config.Reference == "" {
			_ = s.Content.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	if config.Reference != "" { // of an attempt before
		if err := w.Truncate(0); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	diffID, err := pack(ctx, w, config, layer)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	marked := maps.Clone(config.Labels)
	if marked == nil {
		marked = map[string]string{}
	}
	marked[labels.LabelUncompressed] = diffID.String()
	made := w.Digest()
	if err := w.Commit(ctx, 0, made, content.WithLabels(marked)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, err
	}
	info, err := s.Content.Info(ctx, made)
	if err == nil && info.Labels[labels.LabelUncompressed] == "" {
		info.Labels = map[string]string{labels.LabelUncompressed: diffID.String()}
		info, err = s.Content.Update(ctx, info, "labels."+labels.LabelUncompressed)
	}
	return ocispec.Descriptor{MediaType: config.MediaType, Digest: made, Size: info.Size}, err
}

// pack writes the layer into w as its media type says.
func pack(ctx context.Context, w io.Writer, config diff.Config, layer change) (digest.Digest, error) {
	packed, err := compressor(w, config)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	out := io.MultiWriter(packed, hash)
	if config.SourceDateEpoch != nil {
		err = clamp(ctx, layer, out, *config.SourceDateEpoch)
	} else {
		err = layer.WriteTar(ctx, out)
	}
	return digest.NewDigest(digest.SHA256, hash), errors.Join(err, packed.Close())
}

func compressor(w io.Writer, config diff.Config) (io.WriteCloser, error) {
	switch {
	case config.Compressor != nil:
		return config.Compressor(w, config.MediaType)
	case config.MediaType == ocispec.MediaTypeImageLayerGzip:
		return blob.Compress(w), nil
	case config.MediaType == ocispec.MediaTypeImageLayerZstd:
		return zstd.NewWriter(w)
	}
	return plain{w}, nil
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// clamp writes the tar of a layer with no time in it later than at.
func clamp(ctx context.Context, layer change, w io.Writer, at time.Time) error {
	r, pipe := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() { pipe.CloseWithError(layer.WriteTar(ctx, pipe)) })
	err := retime(tar.NewReader(r), w, at)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	writing.Wait()
	return err
}

func retime(in *tar.Reader, w io.Writer, at time.Time) error {
	out := tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		for _, t := range []*time.Time{&h.ModTime, &h.AccessTime, &h.ChangeTime} {
			if t.After(at) {
				*t = at
			}
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil { //nolint:gosec // it is our own
			return err
		}
	}
}
