package registry_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"berth/face/registry"
)

func serve(t *testing.T, dir string, log *slog.Logger) *httptest.Server {
	t.Helper()
	h, err := registry.Handler(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func do(t *testing.T, method, url, contentType string, body []byte, want int) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s, want %d", method, url, resp.Status, want)
	}
	return resp
}

func TestRegistryKeepsAndDeletes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	url := serve(t, dir, log).URL + "/v2/"
	do(t, http.MethodGet, url, "", nil, http.StatusOK)
	config := []byte("{}")
	d := digest.FromBytes(config)
	at := do(t, http.MethodPost, url+"a/b/blobs/uploads/", "", nil, http.StatusAccepted).Header.Get("Location")
	do(t, http.MethodPut, at+"&digest="+d.String(), "application/octet-stream", config, http.StatusCreated)
	const oci = "application/vnd.oci.image.manifest.v1+json"
	m := []byte(`{"schemaVersion":2,"mediaType":"` + oci + `","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + d.String() + `","size":2},"layers":[]}`)
	do(t, http.MethodPut, url+"a/b/manifests/1", oci, m, http.StatusCreated)

	again := serve(t, dir, log).URL + "/v2/" // a second start finds it
	do(t, http.MethodHead, again+"a/b/blobs/"+d.String(), "", nil, http.StatusOK)
	do(t, http.MethodDelete, again+"a/b/manifests/"+digest.FromBytes(m).String(), "", nil, http.StatusAccepted)
	do(t, http.MethodDelete, again+"a/b/blobs/"+d.String(), "", nil, http.StatusAccepted)
	do(t, http.MethodHead, again+"a/b/blobs/"+d.String(), "", nil, http.StatusNotFound)
	if s := logged.String(); s != "" {
		t.Errorf("it was not quiet: %s", s)
	}
}

func TestRegistryTakesPartOfAnIndex(t *testing.T) {
	url := serve(t, t.TempDir(), slog.New(slog.DiscardHandler)).URL + "/v2/"
	const oci = "application/vnd.oci.image.index.v1+json"
	x := `{"schemaVersion":2,"mediaType":"` + oci + `","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","size":7,"platform":{"os":"linux","architecture":"arm64"}}]}`
	do(t, http.MethodPut, url+"a/manifests/1", oci, []byte(x), http.StatusCreated)
}

func TestRegistryNeedsItsFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Handler(t.Context(), filepath.Join(file, "dir"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opened below a file")
	}
}
