package toc_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/toc"
	"berth/image/tree"
)

// content is bodies with other bytes between them, some many points long.
func content() (all []byte, bodies []toc.Body) {
	random := rand.New(rand.NewPCG(1, 9))
	for i := range 40 {
		size := 1 + random.IntN(60_000)
		if i == 20 {
			size = 4 << 20
		}
		body := make([]byte, size)
		for j := range body {
			body[j] = "abcdefgh"[random.IntN(8)] + byte(j>>12)
		}
		all = append(all, fmt.Sprintf("head of body %d", i)...)
		bodies = append(bodies, toc.Body{Object: sha256.Sum256(body), Offset: int64(len(all)), Size: int64(size)})
		all = append(all, body...)
		all = append(all, make([]byte, random.IntN(512))...)
	}
	return all, bodies
}

// packings are ways to compress.
var packings = map[string]func(content []byte) []byte{
	"plain": bytes.Clone,
	"gzip": func(content []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(content)
		w.Close()
		return b.Bytes()
	},
	"zstd": func(content []byte) []byte {
		w, _ := zstd.NewWriter(nil)
		return w.EncodeAll(content, nil)
	},
	"zstd frames": func(content []byte) (packed []byte) {
		w, _ := zstd.NewWriter(nil)
		for part := range slices.Chunk(content, 300_000) {
			packed = w.EncodeAll(part, packed)
		}
		return packed
	},
}

func record(t testing.TB, packed, content []byte, bodies []toc.Body) *toc.Table {
	t.Helper()
	r, err := toc.Record(bytes.NewReader(packed), 1<<30, digest.FromBytes(packed), int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(content), err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	table := r.Table(digest.FromBytes(content))
	if table == nil || table.Content != int64(len(content)) {
		t.Fatalf("%+v", table)
	}
	if err := table.SetBodies(slices.Values(bodies)); err != nil {
		t.Fatal(err)
	}
	return table
}

// extract takes the bodies of runs out of the bytes of just that run.
func extract(t testing.TB, table *toc.Table, packed []byte, runs []toc.Run, want func(toc.Body) bool) map[tree.Digest]int {
	t.Helper()
	taken := map[tree.Digest]int{}
	for _, run := range runs {
		from, to := table.Bytes(run)
		err := table.Extract(run, bytes.NewReader(packed[from:to]), want, func(b toc.Body, r io.Reader) error {
			body, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			if tree.Digest(sha256.Sum256(body)) != b.Object {
				t.Errorf("%d bytes at %d are wrong", b.Size, b.Offset)
			}
			taken[b.Object]++
			return nil
		})
		if err != nil {
			t.Fatalf("bytes %d to %d: %v", from, to, err)
		}
	}
	return taken
}

func TestExtract(t *testing.T) {
	content, bodies := content()
	for name, pack := range packings {
		packed := pack(content)
		table := record(t, packed, content, bodies)
		all := func(toc.Body) bool { return true }
		for _, b := range bodies {
			found, ok := table.Find(b.Object)
			if !ok || found != b {
				t.Fatalf("%s: body at %d is at %+v", name, b.Offset, found)
			}
			run := table.Around(b)
			if from, to := table.Bytes(run); name == "gzip" && to-from > b.Size+3*toc.Every {
				t.Errorf("%s: %d bytes of the blob for a body of %d", name, to-from, b.Size)
			}
			if from, to := table.Bytes(run); table.Upto(run, b.Offset+b.Size) > to || table.Upto(run, b.Offset+b.Size) <= from {
				t.Errorf("%s: body at %d is read up to %d of %d", name, b.Offset, table.Upto(run, b.Offset+b.Size), to)
			}
			taken := extract(t, table, packed, []toc.Run{run}, func(o toc.Body) bool { return o == b })
			if taken[b.Object] != 1 {
				t.Fatalf("%s: body at %d taken %d times", name, b.Offset, taken[b.Object])
			}
		}
		runs := table.Runs(func(tree.Digest) bool { return true }, 1<<20, 4<<20)
		if taken := extract(t, table, packed, runs, all); len(taken) != len(bodies) {
			t.Errorf("%s: %d of %d bodies in %d runs", name, len(taken), len(bodies), len(runs))
		}
		few := map[tree.Digest]bool{bodies[3].Object: true, bodies[4].Object: true, bodies[35].Object: true}
		runs = table.Runs(func(d tree.Digest) bool { return few[d] }, 100, 1<<20)
		if taken := extract(t, table, packed, runs, func(b toc.Body) bool { return few[b.Object] }); len(taken) != 3 || len(runs) != 2 && name != "zstd" {
			t.Errorf("%s: %d bodies in %v", name, len(taken), runs)
		}
	}
}

func TestExtractFails(t *testing.T) {
	content, bodies := content()
	packed := packings["gzip"](content)
	table := record(t, packed, content, bodies)
	run := table.Around(bodies[30])
	from, to := table.Bytes(run)
	all, drop := func(toc.Body) bool { return true }, func(_ toc.Body, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	if err := table.Extract(run, bytes.NewReader(packed[from:to-(to-from)/2]), all, drop); errs.KindOf(err) != errs.Invalid {
		t.Errorf("cut: %v", err)
	}
	broken := errors.New("broken")
	if err := table.Extract(run, bytes.NewReader(packed[from:to]), all, func(toc.Body, io.Reader) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("refused: %v", err)
	}
	for _, wrong := range [][]toc.Body{
		{{Offset: 5, Size: 10}, {Offset: 10, Size: 2}}, {{Offset: -1, Size: 2}}, {{Offset: 0, Size: 0}}, {{Offset: table.Content - 1, Size: 2}}, {{Offset: 1 << 62, Size: 1 << 62}},
	} {
		if err := table.SetBodies(slices.Values(wrong)); errs.KindOf(err) != errs.Invalid {
			t.Errorf("bodies %v: %v", wrong, err)
		}
	}
}

func TestStore(t *testing.T) {
	store, err := toc.Open(toc.Config{Dir: filepath.Join(t.TempDir(), "indexes"), Age: time.Hour, Limit: 10 << 20})
	if err != nil {
		t.Fatal(err)
	}
	content, bodies := content()
	var all []digest.Digest
	for name, pack := range packings {
		packed := pack(content)
		table := record(t, packed, content, bodies)
		if err := store.Put(table, toc.Bytes("one", []byte("first")), toc.Bytes("two", nil)); err != nil {
			t.Fatal(err)
		}
		all = append(all, table.Blob)
		f, err := store.Get(table.Blob)
		if err != nil {
			t.Fatal(err)
		}
		if one, ok := f.Part("one"); !ok || one.Size() != 5 {
			t.Errorf("%s: part one: %v", name, ok)
		} else if text, err := io.ReadAll(one); err != nil || string(text) != "first" {
			t.Errorf("%s: part one: %q, %v", name, text, err)
		}
		if _, ok := f.Part("three"); ok {
			t.Errorf("%s: a third part", name)
		}
		got := f.Table
		if err := got.SetBodies(slices.Values(bodies)); err != nil {
			t.Fatal(err)
		}
		if got.DiffID != table.DiffID || got.Longest() != table.Longest() {
			t.Errorf("%s: %+v", name, got)
		}
		runs := got.Runs(func(tree.Digest) bool { return true }, 1<<20, 4<<20)
		if taken := extract(t, got, packed, runs, func(toc.Body) bool { return true }); len(taken) != len(bodies) {
			t.Errorf("%s: %d of %d bodies", name, len(taken), len(bodies))
		}
		f.Close()
	}

	// A flipped bit is found out, and the file is gone.
	name := filepath.Join(store.Dir, "sha256-"+all[0].Encoded())
	damaged, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	damaged[len(damaged)/2] ^= 4
	if err := os.WriteFile(name, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get(all[0]); errs.KindOf(err) != errs.NotFound || store.Has(all[0]) {
		t.Errorf("damaged: %v", err)
	}

	// What is used stays, what is old goes, and the rest has to fit.
	old := time.Now().Add(-2 * time.Hour)
	for _, d := range all[1:3] {
		if err := os.Chtimes(filepath.Join(store.Dir, "sha256-"+d.Encoded()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Expire(t.Context(), func(d digest.Digest) bool { return d == all[1] }); err != nil {
		t.Fatal(err)
	}
	if !store.Has(all[1]) || store.Has(all[2]) || !store.Has(all[3]) {
		t.Errorf("of a used, an old and a new one: %v %v %v", store.Has(all[1]), store.Has(all[2]), store.Has(all[3]))
	}
	store.Limit = 1
	if err := store.Expire(t.Context(), func(digest.Digest) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(store.Dir); err != nil || len(left) > 0 {
		t.Errorf("%d left, %v", len(left), err)
	}
}

// Whatever stands in a file, it is read or refused.
func FuzzRead(f *testing.F) {
	content := bytes.Repeat([]byte("a berth for a ship; "), 200_000)
	for _, pack := range packings {
		packed := pack(content)
		var b bytes.Buffer
		if err := record(f, packed, content, nil).Write(&b, toc.Bytes("part", []byte("text"))); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes()[:b.Len()-sha256.Size])
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := sha256.Sum256(b) // else nothing but the sum is tried
		name := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(name, append(b, sum[:]...), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		read, err := toc.Read(file)
		if err != nil {
			if errs.KindOf(err) != errs.Invalid {
				t.Fatal(err)
			}
			return
		}
		if err := read.Table.SetBodies(slices.Values([]toc.Body{{Size: max(1, read.Table.Content)}})); err != nil {
			return
		}
		runs := read.Table.Runs(func(tree.Digest) bool { return true }, 1<<20, 1<<20)
		for _, r := range runs {
			_ = read.Table.Extract(r, bytes.NewReader(b), func(toc.Body) bool { return true }, func(toc.Body, io.Reader) error { return nil })
		}
	})
}

// A layer made by a context that ends is not noted.
func TestCut(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	packed := packings["gzip"](bytes.Repeat([]byte("x"), 100_000))
	r, err := toc.Record(io.MultiReader(bytes.NewReader(packed[:50]), readerFunc(func([]byte) (int, error) { return 0, ctx.Err() })), 1<<30, digest.FromBytes(packed), int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if r.Table("") != nil {
		t.Error("half a blob has a table")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
