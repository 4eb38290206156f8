package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/archive"
	"berth/image/blob"
	"berth/image/reference"
	"berth/image/registrytest"
)

func newStore(t testing.TB, images ...registrytest.Image) (*blob.Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := blob.Open(t.Context(), dir, nil)
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
	return s, dir
}

func name(t testing.TB, s string) reference.Name {
	t.Helper()
	n, err := reference.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func someImage(t testing.TB, text string, opts ...registrytest.Option) registrytest.Image {
	t.Helper()
	return registrytest.Make(t, []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("a", "the same"))),
		registrytest.Zstd(t, registrytest.Tar(t, registrytest.Text("b", text))),
		registrytest.Plain(t, registrytest.Tar(t, registrytest.Text("c", text))),
	}, opts...)
}

// onlyReader hides every other way to read: it is like standard input.
type onlyReader struct{ io.Reader }

func TestSaveAndLoad(t *testing.T) {
	one, two := someImage(t, "one"), someImage(t, "two", registrytest.Platform("linux", "arm64", ""))
	index, indexBody := registrytest.Index(t, one, two)
	from, _ := newStore(t, one, two)
	if _, err := from.Put(t.Context(), indexBody); err != nil {
		t.Fatal(err)
	}
	images := []archive.Image{
		{Names: []reference.Name{name(t, "one:1"), name(t, "ghcr.io/x/one:2")}, Target: one.Manifest},
		{Names: []reference.Name{name(t, "both")}, Target: index, Manifest: two.Manifest},
		{Target: two.Manifest},
	}
	for _, format := range []string{archive.Docker, archive.OCI} {
		var saved, again bytes.Buffer
		if err := archive.Save(t.Context(), from, images, format, &saved); err != nil {
			t.Fatal(format, err)
		}
		if err := archive.Save(t.Context(), from, images, format, &again); err != nil || !bytes.Equal(saved.Bytes(), again.Bytes()) {
			t.Errorf("%s: a second save gave other bytes: %v", format, err)
		}
		for how, data := range compressed(t, saved.Bytes()) {
			t.Run(format+" "+how, func(t *testing.T) {
				to, _ := newStore(t)
				got, err := archive.Load(t.Context(), onlyReader{bytes.NewReader(data)}, to, archive.LoadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if s, want := describe(got), describe(images); s != want {
					t.Errorf("got  %s\nwant %s", s, want)
				}
				for _, i := range []registrytest.Image{one, two} {
					for d := range i.Blobs {
						if !to.Has(d) {
							t.Errorf("blob %s was lost", d)
						}
					}
				}
				if !to.Has(index.Digest) {
					t.Error("the index was lost")
				}
			})
		}
	}
}

func describe(images []archive.Image) string {
	var s []string
	for _, i := range images {
		s = append(s, fmt.Sprint(i.Names, i.Target.MediaType, i.Target.Digest, i.Target.Size))
	}
	return strings.Join(s, "; ")
}

func compressed(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(b)
	w.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"plain": b, "gzip": gz.Bytes(), "zstd": z.EncodeAll(b, nil)}
}

func TestSaveOfAPartOfAnIndex(t *testing.T) {
	one, two := someImage(t, "one"), someImage(t, "two", registrytest.Platform("linux", "arm64", ""))
	index, body := registrytest.Index(t, one, two)
	from, _ := newStore(t, one)
	from.Put(t.Context(), body)
	from.Put(t.Context(), two.Blobs[two.Manifest.Digest]) // its manifest only
	var saved bytes.Buffer
	if err := archive.Save(t.Context(), from, []archive.Image{{Names: []reference.Name{name(t, "x")}, Target: index, Manifest: one.Manifest}}, "", &saved); err != nil {
		t.Fatal(err)
	}
	to, _ := newStore(t)
	got, err := archive.Load(t.Context(), &saved, to, archive.LoadOptions{})
	if err != nil || len(got) != 1 || got[0].Target.Digest != index.Digest || !to.Has(one.Manifest.Digest) || to.Has(two.Manifest.Digest) {
		t.Error(got, err)
	}
}

func TestSaveFailures(t *testing.T) {
	one := someImage(t, "one")
	from, _ := newStore(t, one)
	from.Delete(t.Context(), one.Layers[1].Digest)
	target := []archive.Image{{Target: one.Manifest}}
	if err := archive.Save(t.Context(), from, target, archive.OCI, io.Discard); !errors.Is(err, errs.NotFound) {
		t.Error("a layer is missing:", err)
	}
	if err := archive.Save(t.Context(), from, target, "zip", io.Discard); !errors.Is(err, errs.Invalid) {
		t.Error("format:", err)
	}
}

// legacy is what docker save wrote before 25: no layout, layers by folder,
// one of them a link.
func legacy(t testing.TB, image registrytest.Image) []registrytest.File {
	t.Helper()
	config, _ := json.Marshal(image.Config)
	hex := digest.FromBytes(config).Encoded()
	list, _ := json.Marshal([]map[string]any{{
		"Config": hex + ".json", "RepoTags": []string{"old/image:1"}, "Layers": []string{"l0/layer.tar", "l1/layer.tar", "l2/layer.tar"},
	}})
	return []registrytest.File{
		{Header: tar.Header{Name: "l0/"}},
		{Header: tar.Header{Name: "l0/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../real/layer.tar"}},
		registrytest.Text("l0/VERSION", "1.0"),
		registrytest.Text("./l1/layer.tar", string(image.Layers[1].Data)),
		registrytest.Text("l2/layer.tar", string(image.Layers[2].Tar)),
		registrytest.Text(hex+".json", string(config)),
		registrytest.Text("real/layer.tar", string(image.Layers[0].Tar)),
		registrytest.Text("manifest.json", string(list)),
		registrytest.Text("repositories", "{}"),
	}
}

func TestLoadLegacy(t *testing.T) {
	image := someImage(t, "x")
	to, dir := newStore(t)
	got, err := archive.Load(t.Context(), bytes.NewReader(registrytest.Tar(t, legacy(t, image)...)), to, archive.LoadOptions{})
	if err != nil || len(got) != 1 || fmt.Sprint(got[0].Names) != "[docker.io/old/image:1]" {
		t.Fatal(got, err)
	}
	b, err := to.Read(t.Context(), got[0].Target.Digest, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil || m.Config.Digest != image.ConfigAt.Digest || len(m.Layers) != 3 {
		t.Fatal(m, err)
	}
	for n, end := range []string{"tar", "tar.zstd", "tar"} {
		if l := m.Layers[n]; !to.Has(l.Digest) || !strings.HasSuffix(l.MediaType, end) {
			t.Errorf("layer %d: %+v", n, l)
		}
	}
	if n := len(onDisk(t, dir)); n != 5 {
		t.Errorf("%d blobs were kept, want 5", n)
	}
}

func onDisk(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	for _, d := range []string{"sha256", "partial", "ingest"} {
		found, err := filepath.Glob(filepath.Join(dir, d, "*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func TestHostileArchives(t *testing.T) {
	image := someImage(t, "x")
	store, _ := newStore(t, image)
	var saved bytes.Buffer
	if err := archive.Save(t.Context(), store, []archive.Image{{Target: image.Manifest}}, archive.OCI, &saved); err != nil {
		t.Fatal(err)
	}
	good := entries(t, saved.Bytes())
	layer := "blobs/sha256/" + image.Layers[0].Digest.Encoded()
	change := func(change func(f registrytest.File) []registrytest.File) []byte {
		var out []registrytest.File
		for _, f := range good {
			out = append(out, change(f)...)
		}
		return registrytest.Tar(t, out...)
	}
	with := func(more ...registrytest.File) []byte { return registrytest.Tar(t, append(more, good...)...) }
	header := func(h tar.Header) registrytest.File { return registrytest.File{Header: h} }
	old := legacy(t, image)
	for name, c := range map[string]struct {
		data []byte
		kind errs.Kind
	}{
		"climbs":           {with(registrytest.Text("../../etc/cron.d/x", "x")), errs.Invalid},
		"absolute":         {with(registrytest.Text("/etc/passwd", "x")), errs.Invalid},
		"climbing link":    {with(header(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"})), errs.Invalid},
		"absolute link":    {with(header(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})), errs.Invalid},
		"device":           {with(header(tar.Header{Name: "d", Typeflag: tar.TypeChar})), errs.Invalid},
		"giant index":      {registrytest.Tar(t, registrytest.Text("index.json", strings.Repeat(" ", 5<<20))), errs.Invalid},
		"no image at all":  {registrytest.Tar(t, registrytest.Text("index.json", "{}")), errs.Invalid},
		"no index":         {registrytest.Tar(t, registrytest.Text("x", "y")), errs.Invalid},
		"no json":          {registrytest.Tar(t, registrytest.Text("index.json", "[")), errs.Invalid},
		"no tar":           {bytes.Repeat([]byte("nonsense"), 1000), errs.Invalid},
		"cut":              {saved.Bytes()[:saved.Len()/2], errs.Invalid},
		"twice":            {with(good[0], good[len(good)-1]), errs.Invalid},
		"bad blob name":    {with(registrytest.Text("blobs/sha256/abc", "x")), errs.Invalid},
		"layer is missing": {change(func(f registrytest.File) []registrytest.File { return unless(f.Name == layer, f) }), errs.Invalid},
		"wrong content": {change(func(f registrytest.File) []registrytest.File {
			if f.Name == layer {
				f.Body = strings.Repeat("x", len(f.Body))
			}
			return []registrytest.File{f}
		}), errs.Invalid},
		"legacy, link in a ring": {registrytest.Tar(t, append([]registrytest.File{
			header(tar.Header{Name: "real/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../l0/layer.tar"}),
		}, append(old[:6:6], old[7:]...)...)...), errs.Invalid},
		"legacy, layer without config": {registrytest.Tar(t, append(old[:5:5], old[6:]...)...), errs.Invalid},
		"legacy, other layer":          {registrytest.Tar(t, append(append(old[:4:4], registrytest.Text("l2/layer.tar", "other")), old[5:]...)...), errs.Invalid},
		"bomb":                         {compressed(t, with(registrytest.Text("x", string(make([]byte, 3<<20)))))["gzip"], errs.Exhausted},
	} {
		t.Run(name, func(t *testing.T) {
			to, dir := newStore(t)
			_, err := archive.Load(t.Context(), onlyReader{bytes.NewReader(c.data)}, to, archive.LoadOptions{Limit: 2 << 20})
			if strings.HasPrefix(name, "giant") {
				_, err = archive.Load(t.Context(), onlyReader{bytes.NewReader(c.data)}, to, archive.LoadOptions{})
			}
			if errs.KindOf(err) != c.kind {
				t.Error(err)
			}
			if left := onDisk(t, dir); len(left) != 0 {
				t.Error("left behind:", left)
			}
		})
	}
}

func unless(drop bool, f registrytest.File) []registrytest.File {
	if drop {
		return nil
	}
	return []registrytest.File{f}
}

func entries(t testing.TB, b []byte) []registrytest.File {
	t.Helper()
	var all []registrytest.File
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, registrytest.File{Header: tar.Header{Name: h.Name}, Body: string(body)})
	}
}

func FuzzLoad(f *testing.F) {
	image := someImage(f, "x")
	store, _ := newStore(f, image)
	var saved bytes.Buffer
	if err := archive.Save(f.Context(), store, []archive.Image{{Target: image.Manifest}}, archive.Docker, &saved); err != nil {
		f.Fatal(err)
	}
	f.Add(saved.Bytes())
	f.Add(registrytest.Tar(f, legacy(f, image)...))
	dir := f.TempDir()
	to, err := blob.Open(f.Context(), dir, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { to.Close() })
	f.Fuzz(func(t *testing.T, in []byte) {
		images, err := archive.Load(t.Context(), bytes.NewReader(in), to, archive.LoadOptions{Limit: 1 << 20})
		if k := errs.KindOf(err); k != "" && k != errs.Invalid && k != errs.Exhausted && k != errs.Unsupported {
			t.Fatalf("%v has kind %s", err, k)
		}
		for _, i := range images {
			if !to.Has(i.Target.Digest) {
				t.Fatalf("%s was promised, but is not there", i.Target.Digest)
			}
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "ingest")); len(left) > 0 {
			t.Fatal("left behind:", left)
		}
	})
}
