package diff

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/face/containerd/snapshots"
	"berth/image/blob"
)

// Apply unpacks the layer desc into what mounts show, and describes its tar.
// Unsupported: a type of layer that needs a processor, as encrypted ones do.
func (s *Service) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	var config diff.ApplyConfig
	for _, set := range opts {
		if err := set(ctx, desc, &config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if err := checkType(ctx, desc.MediaType); err != nil {
		return ocispec.Descriptor{}, err
	}
	open := func(ctx context.Context) (snapshots.Tar, error) { return s.open(ctx, desc, config.Progress) }
	applied, err := s.Snapshots.Apply(ctx, ours(mounts), desc.Digest, open)
	if errs.KindOf(err) == errs.Unsupported {
		return s.applier.Apply(ctx, desc, mounts, opts...)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: applied.Diff, Size: applied.Size}, nil
}

// checkType refuses what is no tar, or no tar yet.
func checkType(ctx context.Context, mediaType string) error {
	_, suffixes, _ := strings.Cut(mediaType, "+")
	for suffix := range strings.SplitSeq(suffixes, "+") {
		if suffix != "" && suffix != "gzip" && suffix != "zstd" {
			return errs.New(errs.Unsupported, "media type %.120q: layers with %q would need a stream processor, and there are none", mediaType, suffix)
		}
	}
	if _, err := images.DiffCompression(ctx, mediaType); err != nil {
		return errs.New(errs.Unsupported, "media type %.120q is no layer's", mediaType)
	}
	return nil
}

func (s *Service) open(ctx context.Context, desc ocispec.Descriptor, progress func(int64)) (_ *layerTar, err error) {
	at, err := s.Content.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	var r io.Reader = bufio.NewReaderSize(content.NewReader(at), 1<<20)
	if progress != nil {
		r = &watched{r: r, progress: progress}
	}
	plain, _, err := blob.Uncompress(r, s.MaxLayer)
	if err != nil {
		return nil, errors.Join(err, at.Close())
	}
	return &layerTar{plain: plain, blob: at, hash: sha256.New()}, nil
}

// layerTar is the tar of a layer, hashed while it is read.
type layerTar struct {
	plain io.ReadCloser
	blob  io.Closer
	hash  hash.Hash
	size  int64
}

func (t *layerTar) Read(p []byte) (int, error) {
	n, err := t.plain.Read(p)
	_, _ = t.hash.Write(p[:n]) // a hash never fails
	t.size += int64(n)
	return n, err
}

// Sum reads what is left behind the tar's end.
func (t *layerTar) Sum() (digest.Digest, int64, error) {
	_, err := io.Copy(io.Discard, t)
	return digest.NewDigest(digest.SHA256, t.hash), t.size, err
}

func (t *layerTar) Close() error { return errors.Join(t.plain.Close(), t.blob.Close()) }

// watched tells how far the blob has been read, as containerd's library does:
// before each read.
type watched struct {
	r        io.Reader
	read     int64
	progress func(int64)
}

func (w *watched) Read(p []byte) (int, error) {
	w.progress(w.read)
	n, err := w.r.Read(p)
	w.read += int64(n)
	return n, err
}
