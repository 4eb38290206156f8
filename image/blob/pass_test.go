package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/blob"
)

func TestPassStoresNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := []byte("content")
	d := digest.FromBytes(content)
	for name, c := range map[string]struct {
		given string
		kind  errs.Kind
	}{"right": {"content", ""}, "wrong": {"Content", errs.Invalid}, "short": {"conten", errs.Unavailable}, "long": {"contents", errs.Invalid}} {
		r, err := s.Pass(t.Context(), d, int64(len(content)), from([]byte(c.given)))
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := io.ReadAll(r)
		if errs.KindOf(err) != c.kind || c.kind == "" && !bytes.Equal(got, content) || r.Origin() != blob.Download {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, again := r.Read(make([]byte, 1)); c.kind != "" && !errors.Is(again, c.kind) {
			t.Errorf("%s, read on: %v", name, again)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := files(t, dir); len(left) != 0 {
		t.Error("stored:", left)
	}
	if _, err := s.Put(t.Context(), content); err != nil {
		t.Fatal(err)
	}
	r, err := s.Pass(t.Context(), d, int64(len(content)), func(context.Context, int64) (io.ReadCloser, error) { panic("it is here") })
	if err != nil || r.Origin() != blob.Stored {
		t.Fatal(err)
	}
	r.Close()
	if _, err := s.Pass(t.Context(), "sha256:..", 1, from(nil)); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

// Who has enough does not wait for a source that gives nothing more.
func TestPassIsBrokenOff(t *testing.T) {
	s := open(t, t.TempDir())
	g := newGate()
	r, err := s.Pass(t.Context(), digest.FromString("onetwo"), 6, g.open)
	if err != nil {
		t.Fatal(err)
	}
	g.next <- []byte("one")
	b := make([]byte, 2)
	if n, err := io.ReadFull(r, b); string(b[:n]) != "on" || err != nil {
		t.Fatal(n, err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if g.ctx.Err() == nil {
		t.Error("the source goes on")
	}
}

// However it is cut, it comes out as it went in.
func TestPassIsWhole(t *testing.T) {
	s := open(t, t.TempDir())
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	for _, r := range []func(io.Reader) io.Reader{iotest.HalfReader, iotest.DataErrReader, func(r io.Reader) io.Reader { return r }} {
		got, err := s.Pass(t.Context(), digest.FromBytes(content), int64(len(content)), func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(r(bytes.NewReader(content))), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(got)
		if err != nil || !bytes.Equal(all, content) {
			t.Errorf("%d bytes, %v", len(all), err)
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Images that were committed by older programs are pushed by making their
// blobs again: these bytes must never change.
func TestCompressNeverChanges(t *testing.T) {
	var in bytes.Buffer
	for i := range 20000 {
		in.WriteString(strings.Repeat(string(rune('a'+i%26)), i%7) + digest.FromString(string(rune(i))).Encoded()[:i%64])
	}
	const want = "c6ec58b291db2ed627a9110c567d8d20847cbbb21392e19c2c9f1ef7e71b5af4"
	for _, piece := range []int{1 << 20, 1000, 65536} {
		var out bytes.Buffer
		z := blob.Compress(&out)
		for rest := in.Bytes(); len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			if _, err := z.Write(rest[:min(piece, len(rest))]); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if got := digest.FromBytes(out.Bytes()).Encoded(); got != want {
			t.Errorf("in pieces of %d the digest is %s, want %s: keep the library that compresses at the version that gave this", piece, got, want)
		}
	}
}
