package pull_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/pull"
	"berth/image/registrytest"
	"berth/spec"
)

// A part is what was asked for, whatever the registry does about ranges and
// however often the connection is cut.
func TestPart(t *testing.T) {
	registry := registrytest.New(t)
	body := registrytest.Noise(4, 400_000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	registry.PutBlob(t, "part", desc.Digest, body)
	source, err := pull.New(pull.Config{}).Source(t.Context(), spec.PullRequest{Reference: registry.Host() + "/part"})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	read := func(from, to int64) ([]byte, error) {
		r, err := source.Part(t.Context(), desc, from, to)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	noRanges := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	}
	for _, c := range []struct {
		name  string
		fault *registrytest.Fault
	}{
		{"", nil}, {"no ranges", &registrytest.Fault{Handler: noRanges}}, {"cut", &registrytest.Fault{Handler: registrytest.Cut(90_000), Times: 3}},
	} {
		registry.Mend()
		if c.fault != nil {
			c.fault.Match = registrytest.Blobs()
			registry.Break(*c.fault)
		}
		for _, part := range [][2]int64{{0, 400_000}, {0, 1}, {399_999, 400_000}, {1000, 301_000}, {200_000, 400_000}, {7, 7}} {
			if got, err := read(part[0], part[1]); err != nil || !bytes.Equal(got, body[part[0]:part[1]]) {
				t.Errorf("%s: bytes %d to %d: %d, %v", c.name, part[0], part[1], len(got), err)
			}
		}
	}
	for _, part := range [][2]int64{{-1, 5}, {5, 4}, {0, 400_001}} {
		if _, err := read(part[0], part[1]); errs.KindOf(err) != errs.Invalid {
			t.Errorf("bytes %d to %d: %v", part[0], part[1], err)
		}
	}
	asked := registry.Requests("GET", "/blobs/")
	if asked[0].Range != "" || asked[1].Range != "bytes=0-0" {
		t.Errorf("asked for %q and %q", asked[0].Range, asked[1].Range)
	}
}
