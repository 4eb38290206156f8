package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// The image to pull: as many files, bytes and layers as a usual one of a
// programming language, in bodies that gzip to about two fifths.
const (
	bigFiles = 20_000
	bigBytes = 311_000_000
	bigName  = "bench/big:1"
	layout   = `{"imageLayoutVersion":"1.0.0"}`

	manifestType = "application/vnd.oci.image.manifest.v1+json"
)

// bigShares are the layers' parts of the files, in thousandths.
var bigShares = [...]int{230, 180, 140, 110, 90, 80, 60, 50, 30, 20, 10}

type blob struct {
	Type   string `json:"mediaType"`
	Digest string `json:"digest"`
	Size   int    `json:"size"`

	data []byte
	diff string // digest of the uncompressed layer
}

// writeBig writes the image as an OCI archive; the same one on each machine
// with the same version of Go.
func writeBig(path string) (err error) {
	layers := make([]blob, len(bigShares))
	err = each(len(bigShares), runtime.NumCPU(), func(i int) (err error) {
		layers[i], err = bigLayer(i)
		return err
	})
	if err != nil {
		return err
	}
	var diffs []string
	for _, l := range layers {
		diffs = append(diffs, l.diff)
	}
	config, err := document("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2023-11-14T22:13:20Z",
		"config": map[string]any{"Cmd": []string{"/bin/true"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	manifest, err := document(manifestType, map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers})
	if err != nil {
		return err
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{
		"mediaType": manifest.Type, "digest": manifest.Digest, "size": manifest.Size,
		"annotations": map[string]string{"io.containerd.image.name": "docker.io/" + bigName, "org.opencontainers.image.ref.name": "1"},
	}}})
	if err != nil {
		return err
	}
	return writeLayout(path, index, append(layers, config, manifest))
}

func writeLayout(path string, index []byte, blobs []blob) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "big-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	if err := add("oci-layout", []byte(layout)); err != nil {
		return err
	}
	if err := add("index.json", index); err != nil {
		return err
	}
	for _, b := range blobs {
		if err := add("blobs/sha256/"+b.Digest[len("sha256:"):], b.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func document(kind string, v any) (blob, error) {
	data, err := json.Marshal(v)
	return blob{Type: kind, Digest: digest(data), Size: len(data), data: data}, err
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// bigLayer makes one layer: packages of twenty files each.
func bigLayer(n int) (blob, error) {
	random := rand.New(rand.NewPCG(uint64(n), 311))
	sizes := bigSizes(random, n)
	prose := newProse(random)
	var compressed bytes.Buffer
	squeeze := gzip.NewWriter(&compressed)
	whole := sha256.New()
	w := tar.NewWriter(io.MultiWriter(squeeze, whole))
	when := time.Unix(1700000000, 0)
	made := map[string]bool{}
	dir := func(name string) error {
		if made[name] {
			return nil
		}
		made[name] = true
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: when})
	}
	for i, size := range sizes {
		pkg := fmt.Sprintf("usr/lib/layer%02d/pkg%03d", n, i/100)
		for _, d := range []string{"usr", "usr/lib", filepath.Dir(pkg), pkg, fmt.Sprintf("%s/part%d", pkg, i%100/20)} {
			if err := dir(d); err != nil {
				return blob{}, err
			}
		}
		name := fmt.Sprintf("%s/part%d/file%05d.txt", pkg, i%100/20, i)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size), ModTime: when}); err != nil {
			return blob{}, err
		}
		if _, err := w.Write(prose.take(size)); err != nil {
			return blob{}, err
		}
	}
	if err := w.Close(); err != nil {
		return blob{}, err
	}
	if err := squeeze.Close(); err != nil {
		return blob{}, err
	}
	data := compressed.Bytes()
	return blob{
		Type: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest(data), Size: len(data),
		data: data, diff: fmt.Sprintf("sha256:%x", whole.Sum(nil)),
	}, nil
}

// bigSizes spreads the layer's bytes over its files: many small, few large.
func bigSizes(random *rand.Rand, n int) []int {
	sizes := make([]int, bigFiles*bigShares[n]/1000)
	weights, sum := make([]float64, len(sizes)), 0.0
	for i := range weights {
		weights[i] = math.Exp(1.3 * random.NormFloat64())
		sum += weights[i]
	}
	left := bigBytes / 1000 * bigShares[n]
	for i := range sizes {
		sizes[i] = min(left, int(weights[i]/sum*float64(bigBytes/1000*bigShares[n])))
		left -= sizes[i]
	}
	sizes[0] += left
	return sizes
}

// prose is text of made-up words, some much more frequent than others.
type prose struct {
	random *rand.Rand
	zipf   *rand.Zipf
	words  [][]byte
	rest   []byte
}

func newProse(random *rand.Rand) *prose {
	p := &prose{random: random, zipf: rand.NewZipf(random, 1.15, 20, 7999)}
	for range 8000 {
		word := make([]byte, 3+random.IntN(9))
		for i := range word {
			word[i] = byte('a' + random.IntN(26))
		}
		p.words = append(p.words, append(word, ' '))
	}
	return p
}

func (p *prose) take(n int) []byte {
	for len(p.rest) < n {
		p.rest = append(p.rest, p.words[p.zipf.Uint64()]...)
		if p.random.IntN(12) == 0 {
			p.rest[len(p.rest)-1] = '\n'
		}
	}
	out := bytes.Clone(p.rest[:n])
	p.rest = append(p.rest[:0], p.rest[n:]...)
	return out
}
