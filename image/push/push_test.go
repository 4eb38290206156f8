package push_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/push"
	"berth/image/reference"
	"berth/image/registrytest"
	"berth/image/remote"
	"berth/spec"
)

func newStore(t testing.TB, images ...registrytest.Image) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.Context(), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for _, i := range images {
		for _, b := range i.Blobs {
			if _, err := s.Put(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func newPusher(s *blob.Store, elsewhere ...string) *push.Pusher {
	return push.New(push.Config{
		Source: s,
		Remote: remote.Config{CertDirs: []string{}, Backoff: time.Millisecond, Stall: 5 * time.Second, Chunk: 1 << 20},
		Elsewhere: func(digest.Digest) []reference.Name {
			var names []reference.Name
			for _, e := range elsewhere {
				n, _ := reference.Parse(e)
				names = append(names, n)
			}
			return names
		},
	})
}

func smallImage(t testing.TB, text string, opts ...registrytest.Option) registrytest.Image {
	t.Helper()
	return registrytest.Make(t, []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("base", "the same"))),
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("own", text))),
	}, opts...)
}

// holds asks the registry itself for every part.
func holds(t testing.TB, reg *registrytest.Registry, repository, tag string, want ocispec.Descriptor, blobs map[digest.Digest][]byte) {
	t.Helper()
	get := func(path string) (*http.Response, []byte) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, reg.URL+"/v2/"+repository+path, nil)
		req.Header.Set("Accept", want.MediaType)
		resp, err := reg.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		return resp, b.Bytes()
	}
	resp, body := get("/manifests/" + tag)
	if got := digest.FromBytes(body); resp.StatusCode != http.StatusOK || got != want.Digest {
		t.Errorf("tag %s: %s %s, want %s", tag, resp.Status, got, want.Digest)
	}
	for d, b := range blobs {
		if d == want.Digest {
			continue
		}
		if resp, body := get("/blobs/" + d.String()); resp.StatusCode != http.StatusOK || !bytes.Equal(body, b) {
			t.Errorf("blob %s: %s", d, resp.Status)
		}
	}
}

func TestPushAndSkip(t *testing.T) {
	reg := registrytest.New(t)
	image := smallImage(t, "x")
	p := newPusher(newStore(t, image))
	var statuses []string
	report := func(e spec.Progress) { statuses = append(statuses, e.Status) }
	req := spec.PushRequest{Reference: reg.Host() + "/a/b:1"}
	got, err := p.Push(t.Context(), req, image.Manifest, report)
	if err != nil || got.Digest != image.Manifest.Digest {
		t.Fatal(got, err)
	}
	holds(t, reg, "a/b", "1", image.Manifest, image.Blobs)
	uploads := len(reg.Requests(http.MethodPut, "/blobs/"))
	if _, err := p.Push(t.Context(), req, image.Manifest, report); err != nil {
		t.Fatal(err)
	}
	if again := len(reg.Requests(http.MethodPut, "/blobs/")); again != uploads {
		t.Errorf("the second push uploaded %d blobs", again-uploads)
	}
	if s := strings.Join(statuses, " "); strings.Count(s, "exists") != 3 {
		t.Errorf("statuses: %s", s)
	}
}

func TestPushMounts(t *testing.T) {
	reg := registrytest.New(t)
	image := smallImage(t, "x")
	s := newStore(t, image)
	if _, err := newPusher(s).Push(t.Context(), spec.PushRequest{Reference: reg.Host() + "/a/b:1"}, image.Manifest, nil); err != nil {
		t.Fatal(err)
	}
	before := len(reg.Requests(http.MethodPut, "/blobs/"))
	p := newPusher(s, "elsewhere.example/z", reg.Host()+"/missing", reg.Host()+"/a/b")
	if _, err := p.Push(t.Context(), spec.PushRequest{Reference: reg.Host() + "/c:1"}, image.Manifest, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(reg.Requests(http.MethodPut, "/blobs/")); n != before {
		t.Errorf("%d blobs were uploaded instead of mounted", n-before)
	}
	holds(t, reg, "c", "1", image.Manifest, image.Blobs)
}

func TestPushGoesOnInChunks(t *testing.T) {
	reg := registrytest.New(t)
	image := registrytest.Make(t, []registrytest.Layer{registrytest.Plain(t, registrytest.Noise(1, 5<<19))})
	failed := 0
	reg.Break(registrytest.Fault{
		Match: func(r *http.Request) bool {
			big := r.ContentLength > 1<<20-1
			return big && (r.Method == http.MethodPut || r.Method == http.MethodPatch && failed < 2)
		},
		Handler: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			failed++
			panic(http.ErrAbortHandler)
		},
	})
	if _, err := newPusher(newStore(t, image)).Push(t.Context(), spec.PushRequest{Reference: reg.Host() + "/a:1"}, image.Manifest, nil); err != nil {
		t.Fatal(err)
	}
	if failed != 2 {
		t.Errorf("%d uploads were broken", failed)
	}
	holds(t, reg, "a", "1", image.Manifest, image.Blobs)
}

func TestPushOfAnIndex(t *testing.T) {
	amd, arm, riscv := smallImage(t, "x"), smallImage(t, "y", registrytest.Platform("linux", "arm64", "v8")), smallImage(t, "z", registrytest.Platform("linux", "riscv64", ""))
	desc, body := registrytest.Index(t, amd, arm, riscv)
	for _, c := range []struct {
		name     string
		here     []registrytest.Image
		platform string
		check    func(got ocispec.Descriptor) bool
	}{
		{"all", []registrytest.Image{amd, arm, riscv}, "", func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }},
		{"one", []registrytest.Image{amd}, "", func(d ocispec.Descriptor) bool { return d.Digest == amd.Manifest.Digest }},
		{"some", []registrytest.Image{amd, arm}, "", func(d ocispec.Descriptor) bool {
			return d.MediaType == ocispec.MediaTypeImageIndex && d.Digest != desc.Digest
		}},
		{"platform", []registrytest.Image{amd, arm}, "linux/arm64", func(d ocispec.Descriptor) bool { return d.Digest == arm.Manifest.Digest }},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := registrytest.New(t)
			s := newStore(t, c.here...)
			if _, err := s.Put(t.Context(), body); err != nil {
				t.Fatal(err)
			}
			got, err := newPusher(s).Push(t.Context(), spec.PushRequest{Reference: reg.Host() + "/a:1", Platform: c.platform}, desc, nil)
			if err != nil || !c.check(got) {
				t.Fatal(got, err)
			}
			holds(t, reg, "a", "1", got, nil)
		})
	}
}

func TestPushFailures(t *testing.T) {
	image := smallImage(t, "x")
	missing := newStore(t)
	if _, err := missing.Put(t.Context(), image.Blobs[image.Manifest.Digest]); err != nil {
		t.Fatal(err)
	}
	reg := registrytest.New(t)
	_, err := newPusher(missing).Push(t.Context(), spec.PushRequest{Reference: reg.Host() + "/a:1"}, image.Manifest, nil)
	if !errors.Is(err, errs.NotFound) || len(reg.Requests("", "")) != 0 {
		t.Errorf("a missing blob: %v", err)
	}
	for status, kind := range map[int]errs.Kind{401: errs.Anonymous, 403: errs.Denied, 429: errs.Exhausted, 503: errs.Unavailable} {
		reg.Mend()
		reg.Break(registrytest.Fault{Handler: registrytest.Status(status)})
		_, err := newPusher(newStore(t, image)).Push(t.Context(), spec.PushRequest{Reference: reg.Host() + "/a:1"}, image.Manifest, nil)
		if errs.KindOf(err) != kind {
			t.Errorf("%d: %v", status, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newPusher(newStore(t, image)).Push(ctx, spec.PushRequest{Reference: reg.Host() + "/a:1"}, image.Manifest, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
