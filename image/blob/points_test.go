package blob_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"berth/base/errs"
	"berth/image/blob"
)

// words is text that compresses somewhat.
func words(n int) []byte {
	random := rand.New(rand.NewPCG(7, 8))
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString([]string{"quay ", "berth ", "crane\n", "x", string(rune('a' + random.IntN(26)))}[random.IntN(5)])
	}
	return b.Bytes()[:n]
}

// packed is content in all the ways that it comes.
func packed(t testing.TB, content []byte) map[string][]byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(content)
	w.Close()
	all := map[string][]byte{"plain": content, "gzip": bytes.Clone(z.Bytes())}
	var members, framed []byte
	checked, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	unchecked, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	framed = append(framed, 0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c') // one to skip
	for i := 0; i < len(content); i += 70_000 {
		part := content[i:min(i+70_000, len(content))]
		z.Reset()
		w.Reset(&z)
		w.Write(part)
		w.Close()
		members = append(members, bytes.Clone(z.Bytes())...)
		if i/70_000%2 == 0 {
			framed = checked.EncodeAll(part, framed)
		} else {
			framed = unchecked.EncodeAll(part, framed)
		}
	}
	all["gzip members"], all["zstd frames"] = members, framed
	all["zstd"] = checked.EncodeAll(content, nil)
	z.Reset()
	stream, err := zstd.NewWriter(&z) // sizes are not in the frame's head
	if err != nil {
		t.Fatal(err)
	}
	stream.Write(content)
	stream.Close()
	all["zstd stream"] = z.Bytes()
	all["zstd runs"] = checked.EncodeAll(make([]byte, 300_000), nil)
	return all
}

func TestPoints(t *testing.T) {
	content := words(1_000_000)
	most := map[string]int{"gzip": 3, "gzip members": 3, "zstd frames": 7}
	for name, p := range packed(t, content) {
		want := content
		if name == "zstd runs" {
			want = make([]byte, 300_000)
		}
		var points []blob.Point
		r, compression, err := blob.UncompressMarked(bytes.NewReader(p), 1<<30, 100_000, func(p blob.Point) { points = append(points, p) })
		if err != nil {
			t.Fatal(name, err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
		r.Close()
		if len(points) < most[name] || most[name] == 0 && len(points) > 0 {
			t.Errorf("%s: %d points", name, len(points))
		}
		for i, at := range points {
			if i > 0 && at.Out-points[i-1].Out < 100_000 {
				t.Errorf("%s: points at %d and %d", name, points[i-1].Out, at.Out)
			}
			r, err := blob.UncompressFrom(bytes.NewReader(p[at.In():]), compression, at, 1<<30)
			if err != nil {
				t.Fatal(name, err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want[at.Out:]) {
				t.Errorf("%s from %d: %d bytes, %v", name, at.Out, len(got), err)
			}
			r.Close()
		}
	}
	r, err := blob.UncompressFrom(bytes.NewReader(content[500:]), blob.Plain, blob.Point{Bit: 500 * 8, Out: 500}, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); errs.KindOf(err) != errs.Exhausted || !bytes.Equal(got, content[500:600]) {
		t.Errorf("beyond the limit: %d bytes, %v", len(got), err)
	}
}

// Read frame by frame, a stream gives and fails what it does read as a whole.
func FuzzFrames(f *testing.F) {
	for _, p := range packed(f, words(3000)) {
		f.Add(p)
	}
	f.Add(binary.LittleEndian.AppendUint32(nil, 0xFD2FB528))
	f.Fuzz(func(t *testing.T, p []byte) {
		if blob.Detect(p) != blob.Zstd {
			return
		}
		read := func(open func(io.Reader) (io.ReadCloser, blob.Compression, error)) ([]byte, error) {
			r, _, err := open(bytes.NewReader(p))
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return io.ReadAll(r)
		}
		want, wantErr := read(func(r io.Reader) (io.ReadCloser, blob.Compression, error) { return blob.Uncompress(r, 1<<20) })
		got, err := read(func(r io.Reader) (io.ReadCloser, blob.Compression, error) {
			return blob.UncompressMarked(r, 1<<20, 100, func(blob.Point) {})
		})
		if errors.Is(wantErr, errs.Exhausted) {
			return
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v; as a whole: %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that differ from the %d as a whole", len(got), len(want))
		}
	})
}
