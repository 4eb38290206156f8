package fault

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/image/registrytest"
	"berth/test/machine"
)

// Settings of nodes that give up soon and take only small layers.
const (
	soon  = "[registry]\nstall_seconds = 1\nmax_layer_bytes = 33554432"
	limit = 32 << 20
)

// small is an image of one good file.
func small(t *testing.T, opts ...registrytest.Option) registrytest.Image {
	t.Helper()
	layer := registrytest.Gzip(t, registrytest.Tar(t, registrytest.Text("good", "good"), registrytest.File{Header: tar.Header{Name: "noise"}, Body: string(registrytest.Noise(seeds.Add(1), 1<<20))}))
	return registrytest.Make(t, []registrytest.Layer{layer}, append([]registrytest.Option{here}, opts...)...)
}

// seeds makes the layers of small images differ.
var seeds atomic.Uint64

// here makes images for this machine.
var here = registrytest.Platform("linux", runtime.GOARCH, "")

func TestRegistryMisbehaves(t *testing.T) {
	t.Parallel()
	n := newNode(t, soon)
	before := n.inventory(t)
	t.Run("all", func(t *testing.T) {
		for _, c := range []struct {
			name, words string
			fault       registrytest.Fault
		}{
			{"401", "login", registrytest.Fault{Handler: registrytest.Status(401, "WWW-Authenticate", `Basic realm="x"`)}},
			{"403", "refuses access", registrytest.Fault{Handler: registrytest.Status(403)}},
			{"404", "has no image", registrytest.Fault{Handler: registrytest.Status(404)}},
			{"429", "try again later", registrytest.Fault{Handler: registrytest.Status(429)}},
			{"500", "500", registrytest.Fault{Handler: registrytest.Status(500)}},
			{"no blobs", "", registrytest.Fault{Match: registrytest.Blobs(), Handler: registrytest.Status(404)}},
			{"hangs up", "", registrytest.Fault{Handler: registrytest.Cut(0)}},
			{"hangs up in every blob", "", registrytest.Fault{Match: registrytest.Blobs(), Handler: registrytest.Cut(100)}},
			{"stalls at once", "1s", registrytest.Fault{Handler: registrytest.Stall(0)}},
			{"stalls in a blob", "1s", registrytest.Fault{Match: registrytest.Blobs(), Handler: registrytest.Stall(1000)}},
			{"flips a bit of a manifest", "", registrytest.Fault{Match: registrytest.Manifests, Handler: registrytest.Flip()}},
			{"flips a bit of a blob", "digest", registrytest.Fault{Match: registrytest.Blobs(), Handler: registrytest.Flip()}},
			{"is a web page", "", registrytest.Fault{Handler: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprint(w, strings.Repeat("<html>welcome</html>", 1000))
			}}},
			{"never ends a manifest", "", registrytest.Fault{Match: registrytest.Manifests, Handler: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				for r.Context().Err() == nil {
					if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
						return
					}
				}
			}}},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				reg := registrytest.New(t)
				reg.Push(t, "a", "1", small(t))
				reg.Break(c.fault)
				start := time.Now()
				n.fails(t, 1, c.words, "pull", reg.Host()+"/a:1")
				if took := time.Since(start); took > time.Minute {
					t.Errorf("that took %s", took)
				}
				reg.Mend()
				n.ok(t, "pull", reg.Host()+"/a:1")
				n.ok(t, "rmi", reg.Host()+"/a:1")
			})
		}
	})
	n.works(t)
	n.pruned(t, before)
}

func TestBadImages(t *testing.T) {
	t.Parallel()
	n := newNode(t, soon)
	before := n.inventory(t)
	reg := registrytest.New(t)
	outside := n.Dir + "/outside"
	machine.Must(t, os.WriteFile(outside, []byte("untouched"), 0o600))
	up := strings.Repeat("../", 20)
	link := func(kind byte, name, target string) registrytest.File {
		return registrytest.File{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target}}
	}
	text := registrytest.Text
	for _, c := range []struct {
		name, words string
		files       []registrytest.File
		harmless    bool // may be taken, as long as nothing gets out
	}{
		{"climbs", "", []registrytest.File{text(up+n.Dir+"/outside", "evil")}, false},
		{"climbs in the middle", "", []registrytest.File{text("a/b/"+up+"../.."+n.Dir+"/outside", "evil")}, false},
		{"absolute", "", []registrytest.File{text(outside, "evil")}, true},
		{"through a symlink", "", []registrytest.File{link(tar.TypeSymlink, "a", n.Dir), text("a/outside", "evil")}, true},
		{"through a relative symlink", "", []registrytest.File{link(tar.TypeSymlink, "a", up+n.Dir), text("a/outside", "evil")}, true},
		{"over a symlink", "", []registrytest.File{link(tar.TypeSymlink, "a", outside), text("a", "evil")}, true},
		{"hard link out", "", []registrytest.File{link(tar.TypeLink, "a", up+outside), text("a", "evil")}, false},
		{"hard link through a symlink", "", []registrytest.File{link(tar.TypeSymlink, "d", n.Dir), link(tar.TypeLink, "a", "d/outside"), text("a", "evil")}, false},
		{"hard link to nothing", "nothing", []registrytest.File{link(tar.TypeLink, "a", "nothing")}, false},
		{"whiteout that climbs", "", []registrytest.File{text("a/.wh...", "")}, false},
		{"whiteout through a symlink", "", []registrytest.File{link(tar.TypeSymlink, "a", n.Dir), text("a/.wh.outside", "")}, true},
		{"a path 10,000 deep", "", []registrytest.File{text(strings.Repeat("d/", 10_000)+"f", "deep")}, true},
		{"a name too long", "", []registrytest.File{text(strings.Repeat("n", 5000), "long")}, false},
		{"the root a file", "", []registrytest.File{text(".", "evil")}, false},
		{"attributes", "", []registrytest.File{{Header: tar.Header{Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, Body: "fine"}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := registrytest.Make(t, []registrytest.Layer{registrytest.Gzip(t, registrytest.Tar(t, text("good", "good"))), registrytest.Gzip(t, registrytest.Tar(t, c.files...))}, here)
			reg.Push(t, "bad", "1", bad)
			ref := reg.Host() + "/bad:1"
			if r := n.berth(t, "pull", ref); r.code == 0 && c.harmless {
				n.ok(t, "rmi", ref)
			} else if r.code != 1 || !strings.Contains(r.err, c.words) || !strings.Contains(r.err, "layer") {
				t.Errorf("%.3000s", r)
			} else if len(r.err) > 2000 {
				t.Errorf("the error is %d bytes long: %.500s", len(r.err), r.err)
			}
			if got, err := os.ReadFile(outside); err != nil || string(got) != "untouched" {
				t.Fatalf("a file outside says %q: %v", got, err)
			}
			n.pruned(t, before)
		})
	}
	n.works(t)
}

func TestBadContent(t *testing.T) {
	t.Parallel()
	n := newNode(t, soon)
	before := n.inventory(t)
	reg := registrytest.New(t)
	good := registrytest.Tar(t, registrytest.Text("good", string(registrytest.Noise(3, 200_000))))

	truncated := registrytest.Gzip(t, good[:len(good)/2])
	whole := registrytest.Gzip(t, good)
	half := altered(whole, whole.Data[:50_000])
	garbage := altered(whole, []byte(strings.Repeat("not gzip at all ", 500)))
	otherDiff := registrytest.Gzip(t, good)
	otherDiff.DiffID = digest.FromString("something else")
	bomb := registrytest.Gzip(t, registrytest.Tar(t, registrytest.File{Header: tar.Header{Name: "zeros"}, Body: string(make([]byte, 2*limit))}))
	for _, c := range []struct {
		name, words string
		layer       registrytest.Layer
	}{
		{"truncated tar", "", truncated},
		{"truncated gzip", "", half},
		{"no gzip", "not a tar", garbage},
		{"another diff ID", "configuration says", otherDiff},
		{"bomb", "32", bomb},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg.Push(t, "bad", "1", registrytest.Make(t, []registrytest.Layer{c.layer}, here))
			n.fails(t, 1, c.words, "pull", reg.Host()+"/bad:1")
			n.pruned(t, before)
		})
	}
	t.Run("no fitting platform", func(t *testing.T) {
		reg.PushIndex(t, "other", "1", small(t, registrytest.Platform("windows", "amd64", "")), small(t, registrytest.Platform("linux", "s390x", "")))
		n.fails(t, 1, "linux/s390x", "pull", reg.Host()+"/other:1")
		n.fails(t, 1, "linux/arm64", "pull", "--platform", "linux/arm64", reg.Host()+"/other:1")
	})
	for name, manifest := range map[string]string{
		"no JSON": "}{", "nothing": "{}", "null": "null", "a list": "[]",
		"no config":      `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}`,
		"bad digests":    `{"schemaVersion":2,"config":{"digest":"sha256:../../../etc/passwd","size":10},"layers":[]}`,
		"negative sizes": `{"schemaVersion":2,"config":{"digest":"` + string(digest.FromString("x")) + `","size":-1},"layers":[{"digest":"` + string(digest.FromString("y")) + `","size":-5}]}`,
		"deep":           `{"schemaVersion":2,"config":` + strings.Repeat("[", 100_000) + `}`,
	} {
		t.Run("manifest: "+name, func(t *testing.T) {
			bad := registrytest.New(t)
			bad.Break(registrytest.Fault{Match: registrytest.Manifests, Handler: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				fmt.Fprint(w, manifest)
			}})
			n.fails(t, 1, "", "pull", bad.Host()+"/a:1")
		})
	}
	for name, body := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "half": mustRead(t, archive)[:100_000],
	} {
		t.Run("load: "+name, func(t *testing.T) {
			path := n.Dir + "/bad.tar"
			machine.Must(t, os.WriteFile(path, body, 0o600))
			n.fails(t, 1, "", "load", "-i", path)
		})
	}
	n.works(t)
	n.pruned(t, before)
}

// altered is a layer whose blob is another one.
func altered(l registrytest.Layer, blob []byte) registrytest.Layer {
	l.Data, l.Digest, l.Size = blob, digest.FromBytes(blob), int64(len(blob))
	return l
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	machine.Must(t, err)
	return b
}
