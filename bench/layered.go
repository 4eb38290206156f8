package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
)

// The image of the storage rows: many files in many layers that lie over each
// other, for nine files of ten are placed by their folder and one by itself.
const (
	layeredFiles  = 20_000
	layeredBytes  = 358_600_000
	layeredLayers = 50
	layeredName   = "bench/layered"
)

// layered is one image of the kind; what differs from the first one makes a
// variant.
type layered struct {
	tag     string
	salt    uint32                 // other salts spread the files otherwise over layers
	later   time.Duration          // by which all files are younger
	version func(name string) bool // whether a file has another body; nil is no
	top     bool                   // one more layer: every file with another mode and time
}

// variants are the images that the storage rows pull and unpack.
func variants() []layered {
	images := []layered{
		{tag: "first"},
		{tag: "moved", salt: 1, later: time.Hour}, // the same bodies, but no layer the same
		{tag: "modes", top: true},
		{tag: "config"}, // the same layers
		{tag: "near", version: func(name string) bool { return chance(name, 2, 10) == 0 }},
	}
	for n := 1; n < diskVersions; n++ {
		images = append(images, layered{tag: versionTag(n), version: func(name string) bool {
			return chance(name, 3, 20) < n // each version changes the next twentieth
		}})
	}
	return images
}

// diskVersions is how many versions the row on disk use has, the first image
// included.
const diskVersions = 10

func versionTag(n int) string { return fmt.Sprintf("v%d", n) }

// bit is 1 or 0.
func bit(set bool) int {
	if set {
		return 1
	}
	return 0
}

// source is what all variants are made of.
type source struct {
	names, dirs []string // of files, and of their folders in order
	sizes       []int
	words       [][]byte
}

func newSource() *source {
	random := rand.New(rand.NewPCG(50, layeredBytes))
	s := &source{words: newProse(random).words}
	weights, sum := make([]float64, layeredFiles), 0.0
	for i := range weights {
		weights[i] = math.Exp(1.5 * random.NormFloat64())
		sum += weights[i]
	}
	left := layeredBytes
	for i, w := range weights {
		// Folders of a usual depth, eight files each.
		s.names = append(s.names, fmt.Sprintf("usr/lib/tree%02d/pkg%03d/part%d/file%05d.txt", i%20, i%500, i%2500/500, i))
		s.sizes = append(s.sizes, int(w/sum*layeredBytes))
		s.sizes[i] = s.sizes[copied(i)]
		left -= s.sizes[i]
	}
	s.sizes[0] = max(0, s.sizes[0]+left)
	seen := map[string]bool{}
	for _, name := range s.names {
		for dir := path.Dir(name); dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			s.dirs = append(s.dirs, dir)
		}
	}
	slices.Sort(s.dirs)
	return s
}

// body is that of a file; one in seventeen is a copy of another's.
func (s *source) body(file, version int) []byte {
	p := prose{random: rand.New(rand.NewPCG(uint64(file), uint64(version))), words: s.words}
	p.zipf = rand.NewZipf(p.random, 1.15, 20, uint64(len(s.words)-1))
	return p.take(s.sizes[file])
}

// copied is the file whose body this one has.
func copied(file int) int {
	if file%17 == 16 {
		return file - 1
	}
	return file
}

// chance is one of 0 to n-1, the same for a file each time.
func chance(name string, salt, n uint32) int {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, salt, name)
	return int(h.Sum32() >> 3 % n)
}

// place is the layer of a file in l.
func (s *source) place(l layered, file int) int {
	name := s.names[file]
	if chance(name, 0, 10) > 0 {
		name = path.Dir(name)
	}
	return chance(name, l.salt, layeredLayers)
}

// layer writes the n-th layer of l as a gzipped tar.
func (s *source) layer(l layered, n int) (blob, error) {
	var compressed bytes.Buffer
	squeeze, err := gzip.NewWriterLevel(&compressed, 5)
	if err != nil {
		return blob{}, err
	}
	whole := sha256.New()
	w := tar.NewWriter(io.MultiWriter(squeeze, whole))
	when, mode, top := time.Unix(1_700_000_000, 0).Add(l.later), int64(0o644), n == layeredLayers
	if top {
		when, mode = when.Add(time.Minute), 0o640
	}
	made := map[string]bool{}
	for file, name := range s.names {
		if !top && s.place(l, file) != n {
			continue
		}
		if err := s.folders(w, made, path.Dir(name), when); err != nil {
			return blob{}, err
		}
		version := 0
		if l.version != nil {
			version = bit(l.version(s.names[copied(file)]))
		}
		body := s.body(copied(file), version)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body)), ModTime: when}); err != nil {
			return blob{}, err
		}
		if _, err := w.Write(body); err != nil {
			return blob{}, err
		}
	}
	if err := errors.Join(w.Close(), squeeze.Close()); err != nil {
		return blob{}, err
	}
	data := compressed.Bytes()
	return blob{
		Type: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest(data), Size: len(data),
		data: data, diff: fmt.Sprintf("sha256:%x", whole.Sum(nil)),
	}, nil
}

// folders writes dir and what is above it, where that is not there yet.
func (s *source) folders(w *tar.Writer, made map[string]bool, dir string, when time.Time) error {
	if dir == "." || made[dir] {
		return nil
	}
	if err := s.folders(w, made, path.Dir(dir), when); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: when})
}

// shelf is a folder of images: blobs by digest, manifests by tag.
type shelf string

// imageOn is an image of a shelf, as far as the rows need it.
type imageOn struct {
	Layers []string `json:"layers"` // digests, from the bottom
	Bytes  int64    `json:"bytes"`  // of the layers, compressed
}

func (s shelf) blob(digest string) string {
	return filepath.Join(string(s), "blobs", digest[len("sha256:"):])
}

func (s shelf) manifest(tag string) string { return filepath.Join(string(s), "manifests", tag) }

// fill makes the variants that are not there yet. They are the same on each
// machine with the same versions of Go and of the compressor.
func (s shelf) fill(wanted []layered, report func(tag string)) error {
	var missing []layered
	for _, l := range wanted {
		if _, err := os.Stat(s.manifest(l.tag)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, l)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for _, dir := range []string{"blobs", "manifests", "images"} {
		if err := os.MkdirAll(filepath.Join(string(s), dir), 0o755); err != nil {
			return err
		}
	}
	made := newSource()
	for _, l := range missing {
		report(l.tag)
		if err := s.add(made, l); err != nil {
			return err
		}
	}
	return nil
}

func (s shelf) add(made *source, l layered) error {
	layers := make([]blob, layeredLayers+bit(l.top))
	err := each(len(layers), runtime.NumCPU(), func(i int) (err error) {
		if layers[i], err = made.layer(l, i); err != nil {
			return err
		}
		err = os.WriteFile(s.blob(layers[i].Digest), layers[i].data, 0o644)
		layers[i].data = nil
		return err
	})
	if err != nil {
		return err
	}
	image := imageOn{}
	var diffs []string
	for _, b := range layers {
		image.Layers, diffs = append(image.Layers, b.Digest), append(diffs, b.diff)
		image.Bytes += int64(b.Size)
	}
	config, err := document("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2023-11-14T22:13:20Z",
		"config": map[string]any{"Cmd": []string{"/bin/true"}, "Labels": map[string]string{"version": l.tag}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	manifest, err := document(manifestType, map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers})
	if err != nil {
		return err
	}
	about, err := json.Marshal(image)
	if err != nil {
		return err
	}
	// The manifest's name comes last: it says that all is there.
	return errors.Join(
		os.WriteFile(s.blob(config.Digest), config.data, 0o644),
		os.WriteFile(s.blob(manifest.Digest), manifest.data, 0o644),
		os.WriteFile(filepath.Join(string(s), "images", l.tag), about, 0o644),
		os.WriteFile(s.manifest(l.tag), manifest.data, 0o644))
}

func (s shelf) image(tag string) (image imageOn, err error) {
	about, err := os.ReadFile(filepath.Join(string(s), "images", tag))
	if err != nil {
		return image, err
	}
	return image, json.Unmarshal(about, &image)
}
