package inflate_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"berth/base/errs"
	"berth/base/inflate"
)

// checkpoints reads packed and returns what it holds and where one can begin.
func checkpoints(t testing.TB, packed []byte, every int64) (content []byte, points []inflate.Checkpoint) {
	t.Helper()
	z, err := inflate.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	z.Mark(every, func(c inflate.Checkpoint) { points = append(points, c) })
	content, err = io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return content, points
}

func TestResume(t *testing.T) {
	for name, body := range contents() {
		for _, level := range []int{gzip.NoCompression, gzip.BestSpeed, gzip.DefaultCompression, gzip.HuffmanOnly} {
			packed := compress(t, body, level)
			_, points := checkpoints(t, packed, 1)
			if len(body) > 200_000 && level == gzip.DefaultCompression && name != "run" && len(points) < 2 {
				t.Errorf("%s: %d checkpoints", name, len(points))
			}
			for _, c := range points {
				z, err := inflate.Resume(bytes.NewReader(packed[c.Bit/8:]), c)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, body[c.Out:]) {
					t.Fatalf("%s at level %d, from %d on: %d bytes of %d, %v", name, level, c.Out, len(got), len(body)-int(c.Out), err)
				}
			}
		}
	}
}

// Checkpoints of a later member count from the beginning of the stream, one
// that was itself resumed takes the same as one that was read from the start,
// and the checksums of the members behind it are checked.
func TestResumeAcrossMembers(t *testing.T) {
	var packed, want []byte
	for _, name := range []string{"text", "nothing", "mixed", "noise"} {
		packed = append(packed, compress(t, contents()[name], 6)...)
		want = append(want, contents()[name]...)
	}
	content, points := checkpoints(t, packed, 50_000)
	if !bytes.Equal(content, want) || len(points) < 10 {
		t.Fatalf("%d bytes, %d checkpoints", len(content), len(points))
	}
	first := points[1]
	z, err := inflate.Resume(bytes.NewReader(packed[first.Bit/8:]), first)
	if err != nil {
		t.Fatal(err)
	}
	var again []inflate.Checkpoint
	z.Mark(50_000, func(c inflate.Checkpoint) { again = append(again, c) })
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, want[first.Out:]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if len(again) != len(points)-2 {
		t.Fatalf("%d checkpoints behind the second of %d", len(again), len(points))
	}
	for i, c := range again {
		if p := points[i+2]; c.Bit != p.Bit || c.Out != p.Out || !bytes.Equal(c.Window, p.Window) {
			t.Errorf("checkpoint at %d (bit %d) is at %d (bit %d) when resumed", p.Out, p.Bit, c.Out, c.Bit)
		}
	}

	damaged := bytes.Clone(packed)
	damaged[len(damaged)-6] ^= 1 // the last member's checksum
	z, err = inflate.Resume(bytes.NewReader(damaged[first.Bit/8:]), first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(z); errs.KindOf(err) != errs.Invalid {
		t.Errorf("a wrong checksum of a later member: %v", err)
	}
}

func TestResumeCut(t *testing.T) {
	packed := compress(t, contents()["mixed"], 6)
	_, points := checkpoints(t, packed, 100_000)
	c := points[len(points)/2]
	for _, n := range []int64{0, 1, 100} {
		z, err := inflate.Resume(bytes.NewReader(packed[c.Bit/8:c.Bit/8+n]), c)
		if err == nil {
			_, err = io.ReadAll(z)
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
	for _, c := range []inflate.Checkpoint{{Bit: -1}, {Out: 3, Window: make([]byte, 4)}, {Out: 1 << 20, Window: make([]byte, inflate.Window+1)}} {
		if _, err := inflate.Resume(bytes.NewReader(packed), c); errs.KindOf(err) != errs.Invalid {
			t.Errorf("checkpoint at bit %d, %d: %v", c.Bit, c.Out, err)
		}
	}
}

// Whatever is resumed into gives bytes or an error, and ends. From a true
// checkpoint it gives what a plain reader gives.
func FuzzResume(f *testing.F) {
	for _, body := range contents() {
		f.Add(compress(f, body[:min(len(body), 9_000)], 6), int64(77), int64(100), []byte("window"))
	}
	f.Fuzz(func(t *testing.T, packed []byte, bit, out int64, window []byte) {
		if bit >= 0 && bit/8 <= int64(len(packed)) {
			if z, err := inflate.Resume(bytes.NewReader(packed[bit/8:]), inflate.Checkpoint{Bit: bit, Out: out, Window: window}); err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(z, 4<<20)) // that it ends is the test
			}
		}
		z, err := inflate.NewReader(bytes.NewReader(packed))
		if err != nil {
			return
		}
		var points []inflate.Checkpoint
		z.Mark(1000, func(c inflate.Checkpoint) { points = append(points, c) })
		content, err := io.ReadAll(io.LimitReader(z, 1<<20))
		if err != nil || len(content) == 1<<20 {
			return
		}
		for _, c := range points {
			z, err := inflate.Resume(bytes.NewReader(packed[c.Bit/8:]), c)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, content[c.Out:]) {
				t.Fatalf("from %d on: %d bytes of %d, %v", c.Out, len(got), len(content)-int(c.Out), err)
			}
		}
	})
}
