package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image in memory.
type Image struct {
	Manifest ocispec.Descriptor
	Config   ocispec.Image
	ConfigAt ocispec.Descriptor
	Layers   []Layer
	// Blobs holds every part, the manifest too.
	Blobs map[digest.Digest][]byte
}

// Layer is one layer of an Image.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest
	Tar    []byte
}

// Option changes how Make makes an image.
type Option func(*recipe)

type recipe struct {
	platform ocispec.Platform
	config   ocispec.ImageConfig
	docker   bool
}

// Platform sets what the image is for; linux/amd64 if not used.
func Platform(os, arch, variant string) Option {
	return func(r *recipe) { r.platform = ocispec.Platform{OS: os, Architecture: arch, Variant: variant} }
}

// Runs sets the configuration for containers.
func Runs(c ocispec.ImageConfig) Option { return func(r *recipe) { r.config = c } }

// Docker makes the image in docker's format (v2, schema 2) instead of OCI's.
func Docker() Option { return func(r *recipe) { r.docker = true } }

// Make makes an image of layers, lowest first: see Plain, Gzip and Zstd.
func Make(t testing.TB, layers []Layer, opts ...Option) Image {
	t.Helper()
	r := recipe{platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	for _, o := range opts {
		o(&r)
	}
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	i := Image{Layers: layers, Blobs: map[digest.Digest][]byte{}}
	i.Config = ocispec.Image{Created: &created, Platform: r.platform, Config: r.config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	configType := ocispec.MediaTypeImageConfig
	if r.docker {
		m.MediaType, configType = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"
	}
	for n, l := range layers {
		if r.docker {
			l.MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
			i.Layers[n].MediaType = l.MediaType
		}
		i.Config.RootFS.DiffIDs = append(i.Config.RootFS.DiffIDs, l.DiffID)
		i.Config.History = append(i.Config.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", n)})
		i.Blobs[l.Digest] = l.Data
		l.Data = nil
		m.Layers = append(m.Layers, l.Descriptor)
	}
	i.ConfigAt = i.add(t, configType, i.Config)
	m.Config = i.ConfigAt
	i.Manifest = i.add(t, m.MediaType, m)
	i.Manifest.Platform = &r.platform
	return i
}

func (i *Image) add(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(b)
	i.Blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// Index is an index of images.
func Index(t testing.TB, images ...Image) (ocispec.Descriptor, []byte) {
	t.Helper()
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, i := range images {
		x.Manifests = append(x.Manifests, i.Manifest)
	}
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: x.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b
}

// Plain makes a layer of a tar, as Gzip and Zstd do.
func Plain(t testing.TB, tarball []byte) Layer {
	t.Helper()
	return layer(ocispec.MediaTypeImageLayer, tarball, tarball)
}

// Gzip makes a layer compressed with gzip.
func Gzip(t testing.TB, tarball []byte) Layer {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(tarball); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return layer(ocispec.MediaTypeImageLayerGzip, tarball, b.Bytes())
}

// Zstd makes a layer compressed with zstd.
func Zstd(t testing.TB, tarball []byte) Layer {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return layer(ocispec.MediaTypeImageLayerZstd, tarball, z.EncodeAll(tarball, nil))
}

func layer(mediaType string, tarball, blob []byte) Layer {
	return Layer{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob)), Data: blob},
		DiffID:     digest.FromBytes(tarball), Tar: tarball,
	}
}

// File is an entry of a Tar; Body is used where Header.Size is 0.
type File struct {
	tar.Header
	Body string
}

// Tar makes a tar of files, directories (names that end in /) and whatever
// else their headers say. A zero mode becomes 0644 or 0755.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.Body))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if h.Name[len(h.Name)-1] == '/' {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Text is a regular file.
func Text(name, body string) File { return File{Header: tar.Header{Name: name}, Body: body} }

// Archive is the image as a tar with an OCI layout, under the name, which has a
// tag.
func Archive(t testing.TB, image Image, name string) []byte {
	t.Helper()
	_, tag, _ := strings.Cut(name, ":")
	manifest := image.Manifest
	manifest.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: tag}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		t.Fatal(err)
	}
	files := []File{Text(ocispec.ImageLayoutFile, `{"imageLayoutVersion":"1.0.0"}`), Text(ocispec.ImageIndexFile, string(index))}
	for digest, blob := range image.Blobs {
		files = append(files, Text("blobs/sha256/"+digest.Encoded(), string(blob)))
	}
	return Tar(t, files...)
}

// Noise is size bytes that do not compress, the same for the same seed.
func Noise(seed uint64, size int) []byte {
	b := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	src.Read(b) //nolint:errcheck // never fails
	return b
}

// Push puts image into the registry as repository:tag, without any code
// under test.
func (r *Registry) Push(t testing.TB, repository, tag string, image Image) {
	t.Helper()
	for d, b := range image.Blobs {
		if d != image.Manifest.Digest {
			r.PutBlob(t, repository, d, b)
		}
	}
	r.PutManifest(t, repository, tag, image.Manifest.MediaType, image.Blobs[image.Manifest.Digest])
}

// PushIndex puts images and an index of them into the registry.
func (r *Registry) PushIndex(t testing.TB, repository, tag string, images ...Image) ocispec.Descriptor {
	t.Helper()
	for _, i := range images {
		r.Push(t, repository, i.Manifest.Digest.String(), i)
	}
	desc, body := Index(t, images...)
	r.PutManifest(t, repository, tag, desc.MediaType, body)
	return desc
}

// PutBlob uploads a blob.
func (r *Registry) PutBlob(t testing.TB, repository string, d digest.Digest, b []byte) {
	t.Helper()
	answer := r.do(t, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", "", nil, http.StatusAccepted)
	at := answer.Get("Location") + "&digest=" + d.String()
	r.do(t, http.MethodPut, at, "application/octet-stream", b, http.StatusCreated)
}

// PutManifest uploads a manifest or index under a tag or its digest.
func (r *Registry) PutManifest(t testing.TB, repository, tag, mediaType string, b []byte) {
	t.Helper()
	r.do(t, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, mediaType, b, http.StatusCreated)
}

func (r *Registry) do(t testing.TB, method, url, contentType string, body []byte, want int) http.Header {
	t.Helper()
	if url[0] == '/' {
		url = r.URL + url
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := r.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		var said bytes.Buffer
		said.ReadFrom(resp.Body) //nolint:errcheck // for the message only
		t.Fatalf("%s %s: %s %s", method, url, resp.Status, said.String())
	}
	return resp.Header
}
