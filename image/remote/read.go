package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
)

var accepted = strings.Join([]string{manifest.DockerManifest, manifest.DockerList, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "*/*;q=0.1"}, ", ")

// progressEnough is how much a connection must have carried for the next
// cut to count as a first one.
const progressEnough = 64 << 10

// Resolve asks what the name stands for now. It transfers no manifest,
// since registries count those against their limits.
func (r *Repository) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	object := r.name.Object()
	q := request{method: http.MethodHead, path: []string{"manifests", object}, header: http.Header{"Accept": {accepted}}, ok: []int{http.StatusOK}}
	resp, _, err := r.ask(ctx, r.able(docker.HostCapabilityResolve), q)
	if err != nil {
		return ocispec.Descriptor{}, r.resolving(err)
	}
	resp.Body.Close()
	desc := ocispec.Descriptor{
		MediaType: mediaType(resp),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if r.name.Digest() != "" {
		desc.Digest = r.name.Digest()
	}
	if desc.Digest.Validate() == nil && desc.Size > 0 && desc.MediaType != "" {
		return desc, nil
	}
	_, desc, err = r.manifest(ctx, docker.HostCapabilityResolve, object, r.name.Digest()) // a registry that says less than it should
	return desc, r.resolving(err)
}

func (r *Repository) resolving(err error) error {
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusNotFound {
		return errs.New(errs.NotFound, "registry %s has no image %s: check the name and the tag", r.name.Domain(), r.name.Familiar())
	}
	return err
}

// Manifest fetches and verifies a manifest or index.
func (r *Repository) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > manifest.Limit {
		return nil, errs.New(errs.Invalid, "manifest %s has %d bytes; more than %d are not accepted", desc.Digest, desc.Size, manifest.Limit)
	}
	b, _, err := r.manifest(ctx, docker.HostCapabilityPull, desc.Digest.String(), desc.Digest)
	if err == nil && desc.Size > 0 && int64(len(b)) != desc.Size {
		err = errs.New(errs.Invalid, "manifest %s has %d bytes instead of %d", desc.Digest, len(b), desc.Size)
	}
	return b, err
}

func (r *Repository) manifest(ctx context.Context, c docker.HostCapabilities, object string, want digest.Digest) (_ []byte, desc ocispec.Descriptor, err error) {
	q := request{method: http.MethodGet, path: []string{"manifests", object}, header: http.Header{"Accept": {accepted}}, ok: []int{http.StatusOK}}
	resp, h, err := r.ask(ctx, r.able(c), q)
	if err != nil {
		return nil, desc, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, manifest.Limit+1))
	if err != nil {
		return nil, desc, err
	}
	if len(b) > manifest.Limit {
		return nil, desc, errs.New(errs.Invalid, "manifest %s has more than the accepted %d bytes", object, manifest.Limit)
	}
	alg := digest.Canonical
	if want != "" {
		alg = want.Algorithm()
	}
	got := alg.FromBytes(b)
	if want != "" && got != want {
		return nil, desc, errs.New(errs.Invalid, "registry %s gave a manifest that does not match its digest: wanted %s, got %s", h.Host, want, got)
	}
	return b, ocispec.Descriptor{MediaType: mediaType(resp), Digest: got, Size: int64(len(b))}, nil
}

func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// Blob opens a blob at offset, for reading to its end. A connection that is
// cut is taken up again where it ended. The content is not verified.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	return r.part(ctx, desc, offset, desc.Size)
}

// Part opens the bytes of a blob from one offset up to another, as Blob does.
// From a registry that knows no ranges all that lies before comes too.
func (r *Repository) Part(ctx context.Context, desc ocispec.Descriptor, from, to int64) (io.ReadCloser, error) {
	if from < 0 || from > to || to > desc.Size {
		return nil, errs.New(errs.Invalid, "bytes %d to %d of blob %s, which has %d", from, to, desc.Digest, desc.Size)
	}
	if from == to {
		return http.NoBody, nil
	}
	return r.part(ctx, desc, from, to)
}

func (r *Repository) part(ctx context.Context, desc ocispec.Descriptor, from, to int64) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, repo: r, desc: desc, offset: from, end: to, hosts: r.able(docker.HostCapabilityPull)}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

type blob struct {
	ctx    context.Context //nolint:containedctx // Read may have to connect again
	repo   *Repository
	desc   ocispec.Descriptor
	hosts  []docker.RegistryHost
	body   io.ReadCloser
	offset int64
	end    int64
	cuts   int   // in a row
	since  int64 // bytes since the last cut
}

func (b *blob) open() error {
	q := request{
		method: http.MethodGet, path: []string{"blobs", b.desc.Digest.String()},
		header: http.Header{"Accept": {"*/*"}, "Accept-Encoding": {"identity"}}, ok: []int{http.StatusOK},
	}
	if b.offset > 0 || b.end < b.desc.Size {
		last := ""
		if b.end < b.desc.Size {
			last = strconv.FormatInt(b.end-1, 10)
		}
		q.header.Set("Range", "bytes="+strconv.FormatInt(b.offset, 10)+"-"+last)
		q.ok = []int{http.StatusOK, http.StatusPartialContent}
	}
	resp, h, err := b.repo.ask(b.ctx, b.hosts, q)
	if err != nil {
		return err
	}
	if err := b.position(resp); err != nil {
		resp.Body.Close()
		return fmt.Errorf("registry %s: %w", h.Host, err)
	}
	b.body = resp.Body
	return nil
}

// position makes sure that resp begins at offset.
func (b *blob) position(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		if from := "bytes " + strconv.FormatInt(b.offset, 10) + "-"; !strings.HasPrefix(resp.Header.Get("Content-Range"), from) {
			return errs.New(errs.Unavailable, "asked for bytes from %d on, got %q", b.offset, resp.Header.Get("Content-Range"))
		}
		return nil
	}
	_, err := io.CopyN(io.Discard, resp.Body, b.offset) // it knows no ranges
	return err
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.end < b.desc.Size {
			if b.offset == b.end {
				return 0, io.EOF
			}
			p = p[:min(int64(len(p)), b.end-b.offset)]
		}
		n, err := b.body.Read(p)
		b.offset += int64(n)
		b.since += int64(n)
		whole := b.end <= b.offset
		if err == nil || whole && errors.Is(err, io.EOF) {
			return n, err
		}
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Unavailable, "the connection ended after %d of %d bytes", b.offset, b.end)
		}
		if n > 0 {
			return n, nil // the error will come again, or the rest
		}
		if err := b.takeUp(err); err != nil {
			return 0, err
		}
	}
}

// takeUp connects again after a cut. A connection that gave nothing at all
// until it stalled is not worth another.
func (b *blob) takeUp(why error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if errors.Is(why, errs.Timeout) && b.since == 0 {
		return why
	}
	if b.since >= progressEnough {
		b.cuts = 0
	}
	b.since = 0
	if b.cuts++; b.cuts >= b.repo.cfg.Attempts {
		return why
	}
	b.body.Close()
	if err := b.repo.pause(b.ctx, why, b.cuts, 0); err != nil {
		return err
	}
	return b.open()
}

func (b *blob) Close() error { return b.body.Close() }
