package remote_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/reference"
	"berth/image/remote"
)

// An address that a registry sends us on to may be a ticket: no error tells it.
func TestTicketsAreNotTold(t *testing.T) {
	storage := httptest.NewServer(http.NotFoundHandler())
	at := storage.URL
	storage.Close() // nobody is there
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, at+"/bucket/blob?X-Amz-Signature=verysecret&Expires=9", http.StatusTemporaryRedirect)
	}))
	defer registry.Close()
	name, err := reference.Parse(strings.TrimPrefix(registry.URL, "http://") + "/lib/a:v1")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	repository, err := remote.Open(t.Context(), remote.Config{CertDirs: []string{}, Attempts: 2, Backoff: time.Millisecond}, name,
		remote.Access{Retrying: func(err error, _ time.Duration) { told = append(told, err.Error()) }})
	if err != nil {
		t.Fatal(err)
	}
	defer repository.Close()
	_, err = repository.Blob(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1}, 0)
	if errs.KindOf(err) != errs.Unavailable {
		t.Fatal(err)
	}
	told = append(told, err.Error())
	for _, text := range told {
		if strings.Contains(text, "verysecret") || !strings.Contains(text, "/bucket/blob") {
			t.Error(text)
		}
	}
	if len(told) != 2 {
		t.Error(told)
	}
}
