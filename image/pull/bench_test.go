package pull_test

import (
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/image/pull"
	"berth/image/registrytest"
	"berth/spec"
)

const benchSize = 300 << 20

// BenchmarkHash is the bar: no pull can be faster than its digest.
func BenchmarkHash(b *testing.B) {
	data := registrytest.Noise(1, benchSize)
	b.SetBytes(benchSize)
	for b.Loop() {
		sha256.Sum256(data)
	}
}

// BenchmarkFetch brings one layer from loopback into the store, with one
// reader behind it. The registry's side is a file server, so that its own
// cost is small.
func BenchmarkFetch(b *testing.B) {
	dir := b.TempDir()
	image := registrytest.Make(b, []registrytest.Layer{registrytest.Plain(b, registrytest.Noise(1, benchSize))})
	for d, blob := range image.Blobs {
		if err := os.WriteFile(filepath.Join(dir, d.Encoded()), blob, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	image.Blobs, image.Layers[0].Data, image.Layers[0].Tar = nil, nil, nil
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hex := image.Manifest.Digest.Encoded()
		if _, after, ok := strings.Cut(r.URL.Path, "sha256:"); ok {
			hex = after
		}
		w.Header().Set("Content-Type", image.Manifest.MediaType)
		w.Header().Set("Docker-Content-Digest", "sha256:"+hex)
		http.ServeFile(w, r, filepath.Join(dir, hex))
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		p := newPuller(newStore(b, b.TempDir()))
		i, err := p.Open(b.Context(), spec.PullRequest{Reference: host + "/a:1", Platform: "linux/amd64"}, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := drain(b, i); err != nil {
			b.Fatal(err)
		}
	}
}

func drain(b *testing.B, i *pull.Image) error {
	b.Helper()
	defer i.Close()
	st, err := i.Stream(b.Context(), 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{st}, buf); err != nil {
		return err
	}
	return st.Close()
}
