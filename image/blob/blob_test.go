package blob_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/blob"
)

func open(t testing.TB, dir string) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// files lists what lies in the store, but for its mark of the boot.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "boot" {
			rel, _ := filepath.Rel(dir, p)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPutReadDelete(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d, err := s.Put(t.Context(), []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Put(t.Context(), []byte("hello")); err != nil || again != d {
		t.Error("put again:", again, err)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != "sha256/"+d.Encoded() {
		t.Error("on disk:", got)
	}
	if b, err := s.Read(t.Context(), d, 5); err != nil || string(b) != "hello" {
		t.Error(b, err)
	}
	if _, err := s.Read(t.Context(), d, 4); !errors.Is(err, errs.Invalid) {
		t.Error("too large to read:", err)
	}
	var walked []blob.Info
	if err := s.Walk(t.Context(), func(i blob.Info) error { walked = append(walked, i); return nil }); err != nil || len(walked) != 1 || walked[0].Size != 5 {
		t.Error(walked, err)
	}
	if err := s.Delete(t.Context(), d); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"delete": s.Delete(t.Context(), d),
		"info":   func() error { _, err := s.Info(d); return err }(),
		"reader": func() error { _, err := s.Reader(t.Context(), d); return err }(),
	} {
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("%s of what is not there: %v", name, err)
		}
	}
}

func TestDigestsCannotLeadElsewhere(t *testing.T) {
	s := open(t, t.TempDir())
	for _, d := range []digest.Digest{"", "sha256:../../etc/passwd", "sha256:ab", "md5:d41d8cd98f00b204e9800998ecf8427e", digest.Digest("sha384:" + strings.Repeat("a", 96))} {
		if _, err := s.Reader(t.Context(), d); !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unsupported) {
			t.Errorf("%q: %v", d, err)
		}
	}
}

func TestIngestVerifies(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := digest.FromString("right")
	for name, c := range map[string]struct {
		text string
		want digest.Digest
		size int64
		kind errs.Kind
	}{
		"wrong":   {"wrong", d, 5, errs.Invalid},
		"short":   {"rig", d, 5, errs.Unavailable},
		"long":    {"right and more", d, 5, errs.Invalid},
		"unknown": {"right", d, blob.UnknownSize, ""},
		"sha512":  {"right", digest.SHA512.FromString("right"), 5, ""},
	} {
		_, err := s.Ingest(t.Context(), strings.NewReader(c.text), c.want, c.size)
		if errs.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := files(t, dir); len(got) != 2 {
		t.Error("on disk:", got)
	}
}

func TestACrashLeavesNothingThatCounts(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	w, err := s.Writer(t.Context(), "", blob.UnknownSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half a")); err != nil {
		t.Fatal(err)
	}
	open(t, dir) // as a new process would
	if got := files(t, dir); len(got) != 0 {
		t.Error("on disk:", got)
	}
	w.Close()
}

func TestPartialsEndWithTheBoot(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	partial := filepath.Join(dir, "partial", "sha256-x")
	for boot, left := range map[string]bool{"": true, "another boot": false} {
		if err := os.WriteFile(partial, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if boot != "" {
			if err := os.WriteFile(filepath.Join(dir, "boot"), []byte(boot), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		open(t, dir)
		if _, err := os.Stat(partial); (err == nil) != left {
			t.Errorf("boot %q: %v", boot, err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount a small tmpfs:", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := open(t, dir)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	d := digest.FromBytes(big)
	if _, err := s.Ingest(t.Context(), bytes.NewReader(big), d, int64(len(big))); !errors.Is(err, errs.Exhausted) {
		t.Error("ingest:", err)
	}
	st, err := s.Stream(t.Context(), d, int64(len(big)), from(big))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(st); !errors.Is(err, errs.Exhausted) {
		t.Error("stream:", err)
	}
	st.Close()
	s.Close()
	if got := files(t, dir); len(got) != 0 {
		t.Error("left on the full disk:", got)
	}
}

func from(b []byte) blob.Source {
	return func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[offset:])), nil
	}
}

// gate is a source that gives a part each time it is told to.
type gate struct {
	next  chan []byte
	ctx   context.Context //nolint:containedctx // the last caller's, for the test to look at
	began chan int64
}

func (g *gate) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	g.ctx = ctx
	g.began <- offset
	return g, nil
}

func (g *gate) Read(p []byte) (int, error) {
	select {
	case b, ok := <-g.next:
		if !ok {
			return 0, io.EOF
		}
		return copy(p, b), nil
	case <-g.ctx.Done():
		return 0, context.Cause(g.ctx)
	}
}

func (g *gate) Close() error { return nil }

func newGate() *gate { return &gate{next: make(chan []byte, 10), began: make(chan int64, 10)} }

func TestFollowersReadWhatIsThere(t *testing.T) {
	s := open(t, t.TempDir())
	g := newGate()
	d := digest.FromString("onetwo")
	first, err := s.Stream(t.Context(), d, 6, g.open)
	if err != nil || first.Origin() != blob.Download {
		t.Fatal(err)
	}
	g.next <- []byte("one")
	b := make([]byte, 10)
	if n, err := first.Read(b); string(b[:n]) != "one" || err != nil {
		t.Fatal(n, err)
	}
	late, err := s.Stream(t.Context(), d, 6, func(context.Context, int64) (io.ReadCloser, error) { panic("asked twice") })
	if err != nil || late.Origin() != blob.Joined {
		t.Fatal(err)
	}
	if n, err := late.Read(b); string(b[:n]) != "one" || err != nil {
		t.Fatal(n, err)
	}
	if s.Has(d) {
		t.Error("counts as whole too early")
	}
	first.Close() // the download goes on for the other
	g.next <- []byte("two")
	close(g.next)
	if rest, err := io.ReadAll(late); string(rest) != "two" || err != nil {
		t.Fatal(string(rest), err)
	}
	if err := late.Close(); err != nil || !s.Has(d) {
		t.Error("after Close it must be stored:", err)
	}
	third, err := s.Stream(t.Context(), d, 6, nil)
	if err != nil || third.Origin() != blob.Stored {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(third); string(all) != "onetwo" || err != nil {
		t.Error(string(all), err)
	}
	third.Close()
}

func TestADownloadEndsWithItsLastReaderAndResumes(t *testing.T) {
	s := open(t, t.TempDir())
	g := newGate()
	d := digest.FromString("onetwo")
	st, err := s.Stream(t.Context(), d, 6, g.open)
	if err != nil {
		t.Fatal(err)
	}
	g.next <- []byte("one")
	if _, err := st.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	<-g.began
	st.Close()
	<-g.ctx.Done()
	again := newGate()
	again.next <- []byte("two")
	close(again.next)
	st, err = s.Stream(t.Context(), d, 6, again.open)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(st); string(all) != "onetwo" || err != nil {
		t.Error(string(all), err)
	}
	if at := <-again.began; at != 3 || st.Resumed() != 3 {
		t.Errorf("resumed at %d", at)
	}
	st.Close()
}

func TestAFollowerGoesOnWithItsOwnRights(t *testing.T) {
	s := open(t, t.TempDir())
	g := newGate()
	d := digest.FromString("onetwo")
	first, err := s.Stream(t.Context(), d, 6, func(ctx context.Context, at int64) (io.ReadCloser, error) {
		<-g.next
		return nil, errs.New(errs.Denied, "not you")
	})
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Stream(t.Context(), d, 6, from([]byte("onetwo")))
	if err != nil {
		t.Fatal(err)
	}
	close(g.next)
	if _, err := io.ReadAll(first); !errors.Is(err, errs.Denied) {
		t.Error("first:", err)
	}
	if all, err := io.ReadAll(second); string(all) != "onetwo" || err != nil {
		t.Error("second:", string(all), err)
	}
	first.Close()
	second.Close()
}

func TestManyReaders(t *testing.T) {
	s := open(t, t.TempDir())
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	d := digest.FromBytes(content)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			st, err := s.Stream(t.Context(), d, int64(len(content)), from(content))
			if err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(st)
			if err != nil || !bytes.Equal(b, content) {
				t.Error("content differs:", err)
			}
			if err := st.Close(); err != nil || !s.Has(d) {
				t.Error("close:", err)
			}
		})
	}
	wg.Wait()
}

func TestWrongDigestIsNotResumed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := digest.FromString("onetwo")
	st, err := s.Stream(t.Context(), d, 6, from([]byte("onetwX")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(st); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	st.Close()
	s.Close()
	if got := files(t, dir); len(got) != 0 {
		t.Error("left:", got)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	old := filepath.Join(dir, "partial", "sha256-old")
	if err := os.WriteFile(old, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Sweep(time.Now().Add(-time.Hour)); freed != 0 || err != nil {
		t.Error("too young to sweep:", freed, err)
	}
	if freed, err := s.Sweep(time.Now().Add(time.Hour)); freed != 5 || err != nil {
		t.Error(freed, err)
	}
}

func TestClose(t *testing.T) {
	s := open(t, t.TempDir())
	g := newGate()
	st, err := s.Stream(t.Context(), digest.FromString("x"), 1, g.open)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := io.ReadAll(st); err == nil {
		t.Error("a download outlived the store")
	}
	st.Close()
	if _, err := s.Stream(t.Context(), digest.FromString("x"), 1, g.open); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
}

func TestUncompress(t *testing.T) {
	text := strings.Repeat("some text ", 1000)
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write([]byte(text))
	z.Close()
	zs, _ := zstd.NewWriter(nil)
	zst := zs.EncodeAll([]byte(text), nil)
	broken := append([]byte(nil), gz.Bytes()...)
	broken[len(broken)-6] ^= 1
	for name, c := range map[string]struct {
		in    []byte
		limit int64
		how   blob.Compression
		kind  errs.Kind
	}{
		"plain": {[]byte(text), 10000, blob.Plain, ""}, "gzip": {gz.Bytes(), 10000, blob.Gzip, ""}, "zstd": {zst, 10000, blob.Zstd, ""}, "empty": {nil, 0, blob.Plain, ""},
		"plain bomb": {[]byte(text), 9999, blob.Plain, errs.Exhausted}, "gzip bomb": {gz.Bytes(), 9999, blob.Gzip, errs.Exhausted}, "zstd bomb": {zst, 9999, blob.Zstd, errs.Exhausted},
		"gzip cut": {gz.Bytes()[:gz.Len()-9], 10000, blob.Gzip, errs.Invalid}, "zstd cut": {zst[:len(zst)-3], 10000, blob.Zstd, errs.Invalid}, "gzip damaged": {broken, 10000, blob.Gzip, errs.Invalid},
	} {
		r, how, err := blob.Uncompress(bytes.NewReader(c.in), c.limit)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, err := io.ReadAll(r)
		if how != c.how || errs.KindOf(err) != c.kind || c.kind == "" && len(c.in) > 0 && string(b) != text || int64(len(b)) > c.limit {
			t.Errorf("%s: %s, %d bytes, %v", name, how, len(b), err)
		}
		r.Close()
	}
	sourceFails := io.MultiReader(bytes.NewReader(gz.Bytes()[:20]), failing{})
	r, _, err := blob.Uncompress(sourceFails, 1000)
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if !errors.Is(err, errs.Timeout) {
		t.Errorf("the source's own error: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errs.New(errs.Timeout, "stalled") }

func FuzzUncompress(f *testing.F) {
	f.Add([]byte("plain"))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, _, err := blob.Uncompress(bytes.NewReader(in), 1<<16)
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, r)
			r.Close()
			if n > 1<<16 {
				t.Fatalf("%d bytes came out", n)
			}
		}
		if k := errs.KindOf(err); k != "" && k != errs.Invalid && k != errs.Exhausted {
			t.Fatalf("%v has kind %s", err, k)
		}
	})
}
