package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/manifest"
)

// Content opens a blob at offset for an upload; it may be asked several times.
type Content func(ctx context.Context, offset int64) (io.ReadCloser, error)

// Exists asks whether the repository has a blob or manifest.
func (r *Repository) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	kind := "blobs"
	if manifest.IsIndex(desc.MediaType) || manifest.IsManifest(desc.MediaType) {
		kind = "manifests"
	}
	q := request{
		method: http.MethodHead, path: []string{kind, desc.Digest.String()}, header: http.Header{"Accept": {accepted}},
		ok: []int{http.StatusOK, http.StatusNotFound},
	}
	resp, _, err := r.ask(ctx, r.able(docker.HostCapabilityPush), q)
	if err != nil {
		return false, err
	}
	return resp.StatusCode == http.StatusOK, resp.Body.Close()
}

// Mount makes a blob of another repository of the same registry appear in
// this one. false if the registry would rather have it uploaded.
func (r *Repository) Mount(ctx context.Context, desc ocispec.Descriptor, from string) (bool, error) {
	ctx = docker.WithScope(ctx, "repository:"+from+":pull")
	s, err := r.begin(ctx, url.Values{"mount": {desc.Digest.String()}, "from": {from}})
	if err != nil || s == nil {
		return err == nil, err
	}
	q := request{method: http.MethodDelete, url: s.at, ok: []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted, http.StatusNotFound, http.StatusMethodNotAllowed}}
	if resp, err := r.persist(r.scoped(ctx), s.host, q, 1); err == nil {
		resp.Body.Close()
	}
	return false, nil
}

// session is an upload under way.
type session struct {
	host docker.RegistryHost
	at   *url.URL
	min  int64 // the registry's smallest chunk
}

// begin asks for an upload; no session means that a mount has done it.
func (r *Repository) begin(ctx context.Context, query url.Values) (*session, error) {
	q := request{method: http.MethodPost, path: []string{"blobs", "uploads", ""}, query: query, ok: []int{http.StatusAccepted, http.StatusCreated}}
	resp, h, err := r.ask(ctx, r.able(docker.HostCapabilityPush), q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return nil, nil
	}
	s := &session{host: h}
	s.min, _ = strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64) // 0 where it says nothing
	return s, s.moveOn(resp)
}

// moveOn follows the registry to where the upload goes on.
func (s *session) moveOn(resp *http.Response) error {
	at, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return errs.New(errs.Unavailable, "registry %s does not say where to upload to", s.host.Host)
	}
	if s.at = at; at.Scheme == "http" && s.host.Scheme == "https" && at.Host == s.host.Host {
		at.Scheme = resp.Request.URL.Scheme // behind a proxy that ends TLS
	}
	return nil
}

// Upload sends a blob: in one piece, and where that fails in chunks that are
// taken up again where the registry lost them.
func (r *Repository) Upload(ctx context.Context, desc ocispec.Descriptor, content Content) error {
	s, err := r.begin(ctx, nil)
	if err != nil {
		return err
	}
	if err = r.whole(ctx, s, desc, content); err == nil {
		return nil
	}
	f, ok := errors.AsType[*failure](err)
	lost := ok && (f.again || f.status == http.StatusRequestEntityTooLarge || f.status == http.StatusNotFound)
	if !lost || ctx.Err() != nil {
		return fmt.Errorf("upload %s: %w", desc.Digest, err)
	}
	if err := r.pause(ctx, err, 1, f.after); err != nil {
		return fmt.Errorf("upload %s: %w", desc.Digest, err)
	}
	if s, err = r.begin(ctx, nil); err != nil {
		return err
	}
	if err := r.chunks(ctx, s, desc, content); err != nil {
		return fmt.Errorf("upload %s: %w", desc.Digest, err)
	}
	return nil
}

func (r *Repository) whole(ctx context.Context, s *session, desc ocispec.Descriptor, content Content) error {
	q := request{
		method: http.MethodPut, url: withDigest(s.at, desc), size: desc.Size, digest: desc.Size,
		header: http.Header{"Content-Type": {"application/octet-stream"}}, ok: []int{http.StatusCreated, http.StatusNoContent},
		body: func() (io.ReadCloser, error) { return content(ctx, 0) },
	}
	return r.tell(ctx, s, q, 1)
}

func (r *Repository) chunks(ctx context.Context, s *session, desc ocispec.Descriptor, content Content) error {
	step := max(r.cfg.Chunk, s.min)
	for offset, tries := int64(0), 1; offset < desc.Size; {
		size := min(step, desc.Size-offset)
		err := r.chunk(ctx, s, content, offset, size)
		if err == nil {
			offset, tries = offset+size, 1
			continue
		}
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.again && f.status != http.StatusRequestedRangeNotSatisfiable || tries >= r.cfg.Attempts {
			return err
		}
		if err := r.pause(ctx, err, tries, f.after); err != nil {
			return err
		}
		tries++
		if offset, err = r.uploaded(ctx, s); err != nil {
			return err
		}
	}
	q := request{method: http.MethodPut, url: withDigest(s.at, desc), digest: desc.Size, ok: []int{http.StatusCreated, http.StatusNoContent}}
	return r.tell(ctx, s, q, r.cfg.Attempts)
}

func (r *Repository) chunk(ctx context.Context, s *session, content Content, offset, size int64) error {
	q := request{
		method: http.MethodPatch, url: s.at, size: size, ok: []int{http.StatusAccepted, http.StatusNoContent},
		header: http.Header{
			"Content-Type":  {"application/octet-stream"},
			"Content-Range": {fmt.Sprintf("%d-%d", offset, offset+size-1)},
		},
		body: func() (io.ReadCloser, error) {
			rc, err := content(ctx, offset)
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{io.LimitReader(rc, size), rc}, nil
		},
	}
	return r.tell(ctx, s, q, 1)
}

// uploaded asks how far an upload has come.
func (r *Repository) uploaded(ctx context.Context, s *session) (int64, error) {
	q := request{method: http.MethodGet, url: s.at, ok: []int{http.StatusNoContent, http.StatusOK}}
	resp, err := r.persist(r.scoped(ctx), s.host, q, r.cfg.Attempts)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.Header.Get("Location") != "" {
		if err := s.moveOn(resp); err != nil {
			return 0, err
		}
	}
	_, last, ok := strings.Cut(resp.Header.Get("Range"), "-")
	end, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || end <= 0 {
		return 0, nil
	}
	return end + 1, nil
}

func (r *Repository) tell(ctx context.Context, s *session, q request, attempts int) error {
	resp, err := r.persist(r.scoped(ctx), s.host, q, attempts)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if q.method == http.MethodPatch {
		return s.moveOn(resp)
	}
	return nil
}

// PutManifest stores a manifest or index under tag, or under its digest
// where tag is empty.
func (r *Repository) PutManifest(ctx context.Context, desc ocispec.Descriptor, body []byte, tag string) error {
	if tag == "" {
		tag = desc.Digest.String()
	}
	q := request{
		method: http.MethodPut, path: []string{"manifests", tag}, size: int64(len(body)), header: http.Header{"Content-Type": {desc.MediaType}},
		ok:   []int{http.StatusCreated, http.StatusOK, http.StatusAccepted},
		body: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}
	resp, _, err := r.ask(ctx, r.able(docker.HostCapabilityPush), q)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func withDigest(at *url.URL, desc ocispec.Descriptor) *url.URL {
	u := *at
	q := u.Query()
	q.Set("digest", desc.Digest.String())
	u.RawQuery = q.Encode()
	return &u
}
