package toc_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/toc"
	"berth/image/tree"
)

// packer makes layers that bring their table of contents with them: each
// file's bytes begin a gzip member or a zstd frame, big ones several.
type packer struct {
	t    testing.TB
	blob bytes.Buffer
	pack func(p []byte) []byte
	rows []map[string]any
}

const chunkSize = 10_000

func (p *packer) add(row map[string]any, body []byte) {
	name := row["name"].(string)
	p.blob.Write(p.pack(bytes.Repeat([]byte("head of "+name), 20)))
	p.rows = append(p.rows, row)
	if row["type"] != "reg" || len(body) == 0 {
		return
	}
	row["size"], row["digest"] = len(body), digest.FromBytes(body)
	for at := 0; at < len(body); at += chunkSize {
		part := body[at:min(len(body), at+chunkSize)]
		if at > 0 {
			row = map[string]any{"type": "chunk", "name": name, "chunkOffset": at}
			p.rows = append(p.rows, row)
		}
		row["offset"] = p.blob.Len()
		if at+chunkSize < len(body) {
			row["chunkSize"] = len(part)
		}
		p.blob.Write(p.pack(part))
		row["endOffset"] = p.blob.Len()
	}
}

func (p *packer) table() []byte {
	p.t.Helper()
	text, err := json.Marshal(map[string]any{"version": 1, "entries": p.rows})
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

func gzipped(t testing.TB, p []byte, extra []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if extra != nil {
		w, err = gzip.NewWriterLevel(&b, gzip.NoCompression)
		w.Extra = extra
	}
	if err != nil {
		t.Fatal(err)
	}
	w.Write(p)
	w.Close()
	return b.Bytes()
}

// fill adds all that a layer can have.
func (p *packer) fill() map[string][]byte {
	bodies := map[string][]byte{"etc/big": noise(1, 35_000), "etc/exact": noise(2, 2*chunkSize), "etc/small": []byte("small"), "copy": []byte("small")}
	p.add(map[string]any{"type": "dir", "name": "etc/", "mode": 0o750, "uid": 7, "modtime": "2024-05-06T07:08:09Z"}, nil)
	for _, name := range []string{"etc/big", "etc/exact", "etc/small", "copy"} {
		p.add(map[string]any{"type": "reg", "name": name, "mode": 0o4755, "modtime": "2024-05-06T07:08:09Z", "xattrs": map[string][]byte{"user.a": []byte("b")}}, bodies[name])
	}
	p.add(map[string]any{"type": "reg", "name": "empty", "mode": 0o644}, nil)
	p.add(map[string]any{"type": "symlink", "name": "link", "linkName": "etc/big"}, nil)
	p.add(map[string]any{"type": "hardlink", "name": "hard", "linkName": "etc/big"}, nil)
	p.add(map[string]any{"type": "fifo", "name": "pipe"}, nil)
	p.add(map[string]any{"type": "char", "name": "null", "devMajor": 1, "devMinor": 3}, nil)
	p.add(map[string]any{"type": "reg", "name": "deep/down/.wh.gone"}, nil)
	return bodies
}

func noise(seed byte, n int) []byte {
	sum, b := sha256.Sum256([]byte{seed}), []byte{}
	for len(b) < n {
		sum = sha256.Sum256(sum[:])
		b = append(b, sum[:]...)
	}
	return b[:n]
}

func (p *packer) stargz() ocispec.Descriptor {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	text := p.table()
	w.WriteHeader(&tar.Header{Name: "stargz.index.json", Size: int64(len(text))})
	w.Write(text)
	w.Close()
	at := p.blob.Len()
	p.blob.Write(gzipped(p.t, archive.Bytes(), nil))
	p.blob.Write(gzipped(p.t, nil, append([]byte{'S', 'G', 22, 0}, fmt.Sprintf("%016xSTARGZ", at)...)))
	return p.describe(map[string]string{toc.StargzDigest: digest.FromBytes(text).String()})
}

func (p *packer) chunked() ocispec.Descriptor {
	text := p.table()
	packed := p.pack(text)
	at := p.blob.Len()
	p.blob.Write(packed)
	p.blob.WriteString("a footer that nobody needs")
	return p.describe(map[string]string{toc.ChunkedDigest: digest.FromBytes(packed).String(), toc.ChunkedPosition: fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(text))})
}

func (p *packer) describe(annotations map[string]string) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(p.blob.Bytes()), Size: int64(p.blob.Len()), Annotations: annotations}
}

func (p *packer) part(_ context.Context, from, to int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(p.blob.Bytes()[from:to])), nil
}

// formats are the ways to bring a table along.
func formats(t testing.TB) map[string]func() (*packer, func() ocispec.Descriptor) {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func() (*packer, func() ocispec.Descriptor){
		"stargz": func() (*packer, func() ocispec.Descriptor) {
			p := &packer{t: t, pack: func(b []byte) []byte { return gzipped(t, b, nil) }}
			return p, p.stargz
		},
		"chunked": func() (*packer, func() ocispec.Descriptor) {
			p := &packer{t: t, pack: func(b []byte) []byte { return z.EncodeAll(b, nil) }}
			return p, p.chunked
		},
	}
}

func TestGiven(t *testing.T) {
	for name, format := range formats(t) {
		p, end := format()
		bodies := p.fill()
		desc := end()
		if !toc.HasGiven(desc) || toc.HasGiven(ocispec.Descriptor{}) {
			t.Errorf("%s: has a table?", name)
		}
		g, err := toc.ReadGiven(t.Context(), desc, 1<<40, p.part)
		if err != nil {
			t.Fatal(name, err)
		}
		for path, body := range bodies {
			n := tree.Find(g.Root, path)
			if n == nil || n.Size != int64(len(body)) || n.Object != sha256.Sum256(body) || n.Mode&0o7777 != 0o4755 || n.Sec != 1714979289 || len(n.Xattrs) != 1 {
				t.Errorf("%s: %s is %+v", name, path, n)
			}
		}
		if etc := tree.Find(g.Root, "etc"); etc.UID != 7 || etc.Implied || !tree.Find(g.Root, "deep").Implied {
			t.Errorf("%s: folders %+v", name, etc)
		}
		if tree.Find(g.Root, "hard") != tree.Find(g.Root, "etc/big") || tree.Find(g.Root, "link").Target != "etc/big" || !tree.Find(g.Root, "deep/down/gone").IsWhiteout() {
			t.Errorf("%s: links", name)
		}
		if n := tree.Find(g.Root, "empty"); n.Size != 0 || n.Object != (tree.Digest{}) {
			t.Errorf("%s: an empty file %+v", name, n)
		}
		check := func(table *toc.Table) {
			for _, body := range bodies {
				b, ok := table.Find(sha256.Sum256(body))
				if !ok {
					t.Errorf("%s: no place of %d bytes", name, len(body))
					continue
				}
				if taken := extract(t, table, p.blob.Bytes(), []toc.Run{table.Around(b)}, func(o toc.Body) bool { return o == b }); taken[b.Object] != 1 {
					t.Errorf("%s: %d bytes not taken", name, len(body))
				}
			}
			runs := table.Runs(func(tree.Digest) bool { return true }, 1<<20, 1<<20)
			if taken := extract(t, table, p.blob.Bytes(), runs, func(toc.Body) bool { return true }); len(taken) != 3 || len(runs) != 1 {
				t.Errorf("%s: %d bodies in %v", name, len(taken), runs)
			}
		}
		check(g.Table)

		file := filepath.Join(t.TempDir(), "file")
		var b bytes.Buffer
		if err := g.Table.Write(&b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		opened, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		read, err := toc.Read(opened)
		if err != nil {
			t.Fatal(name, err)
		}
		check(read.Table)
		read.Close()
	}
}

func TestGivenRefused(t *testing.T) {
	reg := func(change map[string]any) func(*packer) {
		return func(p *packer) {
			p.add(map[string]any{"type": "reg", "name": "file"}, noise(3, 15_000))
			maps.Copy(p.rows[len(p.rows)-2], change)
		}
	}
	for what, c := range map[string]struct {
		fill func(*packer)
		kind errs.Kind
	}{
		"climbs out":         {func(p *packer) { p.add(map[string]any{"type": "dir", "name": "../etc"}, nil) }, errs.Invalid},
		"a chunk of nothing": {func(p *packer) { p.add(map[string]any{"type": "chunk", "name": "x"}, nil) }, errs.Invalid},
		"too long":           {func(p *packer) { reg(nil)(p); p.rows[len(p.rows)-1]["chunkSize"] = 6000 }, errs.Invalid},
		"too short":          {func(p *packer) { reg(nil)(p); p.rows[len(p.rows)-1]["chunkSize"] = 3000 }, errs.Invalid},
		"negative":           {reg(map[string]any{"size": -5}), errs.Invalid},
		"beyond the end":     {reg(map[string]any{"offset": 1 << 40}), errs.Invalid},
		"before the begin":   {reg(map[string]any{"offset": -1}), errs.Invalid},
		"not in order":       {func(p *packer) { reg(nil)(p); p.rows[len(p.rows)-1]["innerOffset"] = 5 }, errs.Unsupported},
		"without digest":     {reg(map[string]any{"digest": ""}), errs.Unsupported},
		"a hole":             {reg(map[string]any{"chunkType": "zeros"}), errs.Unsupported},
		"another type":       {func(p *packer) { p.add(map[string]any{"type": "door", "name": "x"}, nil) }, errs.Invalid},
	} {
		for name, format := range formats(t) {
			p, end := format()
			c.fill(p)
			if _, err := toc.ReadGiven(t.Context(), end(), 1<<40, p.part); errs.KindOf(err) != c.kind {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
	for name, format := range formats(t) {
		p, end := format()
		p.fill()
		desc := end()
		for key, value := range desc.Annotations {
			if strings.HasPrefix(value, "sha256:") {
				desc.Annotations[key] = digest.FromString("other").String()
			}
		}
		if _, err := toc.ReadGiven(t.Context(), desc, 1<<40, p.part); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s of another digest: %v", name, err)
		}
		p, end = format()
		sum := int64(0)
		for _, body := range p.fill() {
			sum += int64(len(body))
		}
		desc = end()
		for _, limit := range []int64{1, sum - 1} {
			if _, err := toc.ReadGiven(t.Context(), desc, limit, p.part); errs.KindOf(err) != errs.Invalid {
				t.Errorf("%s of more than %d bytes: %v", name, limit, err)
			}
		}
		broken := errors.New("broken")
		if _, err := toc.ReadGiven(t.Context(), desc, 1<<40, func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, broken }); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever stands in a table, it is understood or refused.
func FuzzGiven(f *testing.F) {
	for _, format := range formats(f) {
		p, _ := format()
		p.fill()
		f.Add(p.table())
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p := &packer{t: t, pack: func(b []byte) []byte { return z.EncodeAll(b, nil) }}
		p.fill()
		packed := z.EncodeAll(text, nil)
		at := p.blob.Len()
		p.blob.Write(packed)
		desc := p.describe(map[string]string{toc.ChunkedDigest: digest.FromBytes(packed).String(), toc.ChunkedPosition: fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(text))})
		g, err := toc.ReadGiven(t.Context(), desc, 1<<40, p.part)
		if err != nil {
			return
		}
		for _, run := range g.Table.Runs(func(tree.Digest) bool { return true }, 100, 1<<20) {
			from, to := g.Table.Bytes(run)
			_ = g.Table.Extract(run, bytes.NewReader(p.blob.Bytes()[from:to]), func(toc.Body) bool { return true }, func(toc.Body, io.Reader) error { return nil })
		}
	})
}
