package pull_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"berth/image/blob"
	"berth/image/pull"
	"berth/image/registrytest"
	"berth/image/remote"
	"berth/spec"
)

func newStore(t testing.TB, dir string) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// newPuller is quick to give up and to try again.
func newPuller(s *blob.Store, change ...func(*pull.Config)) *pull.Puller {
	c := pull.Config{Blobs: s, Remote: remote.Config{CertDirs: []string{}, Backoff: time.Millisecond, Stall: 5 * time.Second}}
	for _, f := range change {
		f(&c)
	}
	return pull.New(c)
}

// pullAll pulls everything and returns the tars of the layers.
func pullAll(t testing.TB, p *pull.Puller, req spec.PullRequest) (*pull.Image, [][]byte, error) {
	t.Helper()
	i, err := p.Open(t.Context(), req, nil)
	if err != nil {
		return nil, nil, err
	}
	defer i.Close()
	var tars [][]byte
	for n := range i.Layers {
		b, err := readLayer(t, i, n)
		if err != nil {
			return i, nil, err
		}
		tars = append(tars, b)
	}
	return i, tars, nil
}

func readLayer(t testing.TB, i *pull.Image, n int) ([]byte, error) {
	t.Helper()
	r, err := i.Tar(t.Context(), n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err == nil {
		err = r.Finish()
	}
	if e := r.Close(); err == nil {
		err = e
	}
	return b, err
}

func TestPull(t *testing.T) {
	reg := registrytest.New(t)
	layers := []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("a", "one"))),
		registrytest.Zstd(t, registrytest.Tar(t, registrytest.Text("b", "two"))),
		registrytest.Plain(t, registrytest.Tar(t, registrytest.Text("c", "three"))),
	}
	image := registrytest.Make(t, layers)
	reg.Push(t, "some/thing", "1", image)
	store := newStore(t, t.TempDir())
	i, tars, err := pullAll(t, newPuller(store), spec.PullRequest{Reference: reg.Host() + "/some/thing:1", Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if i.Target.Digest != image.Manifest.Digest || i.Manifest.Digest != image.Manifest.Digest || i.ConfigDescriptor.Digest != image.ConfigAt.Digest {
		t.Errorf("got %v %v %v", i.Target, i.Manifest, i.ConfigDescriptor)
	}
	for n, l := range layers {
		if !bytes.Equal(tars[n], l.Tar) || i.Layers[n].DiffID != l.DiffID {
			t.Errorf("layer %d differs", n)
		}
	}
	for d, want := range image.Blobs {
		got, err := store.Read(t.Context(), d, 1<<20)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("blob %s: %v", d, err)
		}
	}
}
