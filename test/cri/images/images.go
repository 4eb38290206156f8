// Package images makes the images that critest, crictl's transcripts and the
// other tests of the CRI pull, and pushes them into a registry. They look to
// critest as the real ones do; what lies in them is busybox (see build.sh) and
// the program actor under several names.
package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Hosts are the registries that the images are named by.
func Hosts() []string { return []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"} }

// Busybox is the name of the image that most specs run.
const Busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

//go:embed digest
var fixed string

// Fixed is the digest of the image that critest names by one. It depends on
// nothing that was compiled.
func Fixed() digest.Digest { return digest.Digest(strings.TrimSpace(fixed)) }

// Image is an image in memory; Name is repository:tag, without a host.
type Image struct {
	Name     string
	Manifest []byte
	Digest   digest.Digest
	Blobs    map[digest.Digest][]byte
}

type entry struct {
	name, link string // a hard link
	mode       int64
	body       []byte
}

func folder(name string) entry     { return entry{name: name + "/", mode: 0o755} }
func text(name, body string) entry { return entry{name: name, mode: 0o644, body: []byte(body)} }

type layer struct {
	blob      []byte
	mediaType string
	diff      digest.Digest
}

// pack makes a layer, the same bytes each time.
func pack(entries []entry, zip bool) (layer, error) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.body)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.link
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			return layer{}, fmt.Errorf("pack %s: %w", e.name, err)
		}
		if _, err := w.Write(e.body); err != nil {
			return layer{}, fmt.Errorf("pack %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return layer{}, err
	}
	l := layer{blob: plain.Bytes(), mediaType: ocispec.MediaTypeImageLayer, diff: digest.FromBytes(plain.Bytes())}
	if !zip {
		return l, nil
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(l.blob); err != nil {
		return layer{}, err
	}
	if err := z.Close(); err != nil {
		return layer{}, err
	}
	l.blob, l.mediaType = zipped.Bytes(), ocispec.MediaTypeImageLayerGzip
	return l, nil
}

func makeImage(name string, config ocispec.ImageConfig, layers ...layer) (Image, error) {
	i := Image{Name: name, Blobs: map[digest.Digest][]byte{}}
	created := time.Unix(0, 0).UTC()
	if config.Env == nil {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	c := ocispec.Image{Created: &created, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: config, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diff)
		m.Layers = append(m.Layers, i.add(l.mediaType, l.blob))
	}
	body, err := json.Marshal(c)
	if err != nil {
		return Image{}, err
	}
	m.Config = i.add(ocispec.MediaTypeImageConfig, body)
	if i.Manifest, err = json.Marshal(m); err != nil {
		return Image{}, err
	}
	i.Digest = digest.FromBytes(i.Manifest)
	return i, nil
}

func (i *Image) add(mediaType string, body []byte) ocispec.Descriptor {
	d := digest.FromBytes(body)
	i.Blobs[d] = body
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

const (
	users = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	groups = `root:x:0:
daemon:x:1:
bin:x:2:
www-data:x:33:
nogroup:x:65534:
`
	tools = "k8s-staging-cri-tools/"
	tests = "e2e-test-images/"
)

// Make makes all images out of the programs in a folder, see build.sh.
func Make(ctx context.Context, programs string) ([]Image, error) {
	base, err := busybox(ctx, filepath.Join(programs, "busybox"))
	if err != nil {
		return nil, err
	}
	actor, err := os.ReadFile(filepath.Join(programs, "actor")) //nolint:gosec // what build.sh made
	if err != nil {
		return nil, err
	}
	m := maker{base: base, actor: actor}
	sh := ocispec.ImageConfig{Cmd: []string{"sh"}}
	web := []string{"/usr/sbin/nginx", "-g", "daemon off;", "master process"}
	m.on(tests+"busybox:1.29-2", sh)
	m.on(tests+"nginx:1.14-2", ocispec.ImageConfig{Entrypoint: web}, m.act("usr/sbin/nginx", 0o755))
	m.on(tests+"httpd:2.4.39-4", ocispec.ImageConfig{Entrypoint: []string{"/usr/sbin/httpd"}}, m.act("usr/sbin/httpd", 0o755))
	m.on(tests+"nonewprivs:1.3", ocispec.ImageConfig{Entrypoint: []string{"/nonewprivs"}}, m.act("nonewprivs", 0o4755))
	m.on(tools+"hostnet-nginx-amd64:latest", ocispec.ImageConfig{Entrypoint: web, Env: []string{"PATH=/usr/sbin:/bin", "PORT=12003"}}, m.act("usr/sbin/nginx", 0o755))
	for name, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"} {
		m.on(tools+"test-image-user-"+name+":latest", ocispec.ImageConfig{Cmd: []string{"sh"}, User: user})
	}
	m.on(tools+"test-image-predefined-group:latest", ocispec.ImageConfig{Cmd: []string{"sh"}, User: "1000"},
		text("etc/passwd", users+"default-user:x:1000:1000::/home/default-user:/bin/sh\n"),
		text("etc/group", groups+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"),
		folder("home/default-user"))
	for _, n := range []string{"1", "2", "3"} {
		m.on(tools+"test-image-"+n+":latest", sh, text("name", n))
		m.on(tools+"test-image-tags:"+n, sh, text("name", "tags"))
	}
	m.on(tools+"test-image-latest:latest", sh, text("name", "latest"))
	m.on(tools+"test-image-tag:test", sh, text("name", "tag"))
	m.on(tools+"test-image-tag:all", sh, text("name", "all"))
	m.bare(tools+"test-image-digest:latest", false, ocispec.ImageConfig{Cmd: []string{"/none"}}, text("name", "digest"))
	for _, version := range []string{"3.9", "3.10.1"} {
		m.bare("pause:"+version, true, ocispec.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535", Env: []string{"VERSION=" + version}}, m.act("pause", 0o755))
	}
	return m.made, m.err
}

// maker makes images until one fails.
type maker struct {
	base  layer
	actor []byte
	made  []Image
	err   error
}

func (m *maker) act(name string, mode int64) entry {
	return entry{name: name, mode: mode, body: m.actor}
}

// on makes an image on top of busybox.
func (m *maker) on(name string, config ocispec.ImageConfig, more ...entry) {
	m.add(name, true, config, []layer{m.base}, more)
}

// bare makes one on top of nothing.
func (m *maker) bare(name string, zip bool, config ocispec.ImageConfig, entries ...entry) {
	m.add(name, zip, config, nil, entries)
}

func (m *maker) add(name string, zip bool, config ocispec.ImageConfig, layers []layer, top []entry) {
	if m.err != nil {
		return
	}
	if len(top) > 0 {
		l, err := pack(top, zip)
		if err != nil {
			m.err = err
			return
		}
		layers = append(layers, l)
	}
	image, err := makeImage(name, config, layers...)
	m.made, m.err = append(m.made, image), err
}

// busybox is a layer with a link for each of its commands: hard ones, as
// critest hides one of them and uses another.
func busybox(ctx context.Context, program string) (layer, error) {
	body, err := os.ReadFile(program) //nolint:gosec // what build.sh made
	if err != nil {
		return layer{}, err
	}
	list, err := exec.CommandContext(ctx, program, "--list").Output() //nolint:gosec // as above
	if err != nil {
		return layer{}, fmt.Errorf("%s --list: %w", program, err)
	}
	var entries []entry
	for dir := range strings.FieldsSeq("bin dev etc home proc root sys usr usr/bin usr/sbin var var/run var/www") {
		entries = append(entries, folder(dir))
	}
	entries = append(entries, entry{name: "tmp/", mode: 0o1777}, text("etc/passwd", users), text("etc/group", groups),
		entry{name: "bin/busybox", mode: 0o755, body: body})
	for command := range strings.FieldsSeq(string(list)) {
		if command != "busybox" {
			entries = append(entries, entry{name: "bin/" + command, link: "bin/busybox", mode: 0o755})
		}
	}
	return pack(entries, true)
}
