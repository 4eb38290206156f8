package inflate_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"

	"berth/base/errs"
	"berth/base/inflate"
)

// contents are bodies of all kinds: nothing, short, runs, text, noise, and
// such as mix them.
func contents() map[string][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	var text, mixed bytes.Buffer
	for text.Len() < 700_000 {
		text.WriteString([]string{"anchor ", "berth ", "crane ", "dock\n", "e", "fender, "}[random.IntN(6)])
	}
	for mixed.Len() < 900_000 {
		switch at := random.IntN(len(noise) - 5000); random.IntN(4) {
		case 0:
			mixed.Write(noise[at : at+random.IntN(5000)])
		case 1:
			mixed.Write(bytes.Repeat(noise[at:at+1+random.IntN(9)], random.IntN(900)))
		case 2:
			mixed.Write(text.Bytes()[at : at+random.IntN(5000)])
		default:
			seen := mixed.Bytes()
			from := random.IntN(len(seen) + 1)
			mixed.Write(bytes.Clone(seen[from:min(len(seen), from+random.IntN(3000))]))
		}
	}
	skewed := make([]byte, 200_000) // long codes
	for i := range skewed {
		for skewed[i] = 0; random.IntN(2) == 0 && skewed[i] < 255; {
			skewed[i]++
		}
	}
	return map[string][]byte{
		"nothing": nil, "one": {7}, "run": make([]byte, 500_000), "noise": noise,
		"text": text.Bytes(), "mixed": mixed.Bytes(), "skewed": skewed,
	}
}

func compress(t testing.TB, data []byte, level int) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(r io.Reader) ([]byte, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func TestRead(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader,
		"halves": iotest.HalfReader, "end with data": iotest.DataErrReader,
	}
	for name, want := range contents() {
		for _, level := range []int{flate.NoCompression, flate.BestSpeed, flate.DefaultCompression, flate.BestCompression, flate.HuffmanOnly} {
			packed := compress(t, want, level)
			for kind, wrap := range readers {
				got, err := read(wrap(bytes.NewReader(packed)))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s at level %d, %s: %d bytes of %d, %v", name, level, kind, len(got), len(want), err)
				}
			}
		}
	}
}

func TestSmallReads(t *testing.T) {
	want := contents()["mixed"]
	z, err := inflate.NewReader(bytes.NewReader(compress(t, want, 6)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(iotest.OneByteReader(z))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestMembers(t *testing.T) {
	var packed, want []byte
	for _, name := range []string{"text", "nothing", "mixed", "one"} {
		body := contents()[name]
		packed = append(packed, compress(t, body, 6)...)
		want = append(want, body...)
	}
	got, err := read(bytes.NewReader(packed))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := read(bytes.NewReader(append(packed, "rest"...))); errs.KindOf(err) != errs.Invalid && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("bytes behind the last member: %v", err)
	}
}

// Wherever a stream is cut, what came before is right and the end is said.
func TestCut(t *testing.T) {
	want := []byte(strings.Repeat("a crane lifts what a berth holds; ", 40))
	packed := compress(t, want, 6)
	for n := 1; n < len(packed); n++ {
		got, err := read(bytes.NewReader(packed[:n]))
		if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(want, got) {
			t.Errorf("cut at %d of %d: %d bytes, %v", n, len(packed), len(got), err)
		}
	}
}

func TestSourceFails(t *testing.T) {
	broken := errors.New("broken")
	packed := compress(t, contents()["mixed"], 6)
	for _, n := range []int{0, 5, 100, len(packed) / 2, len(packed) - 4} {
		_, err := read(io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// A damaged stream gives what the standard library gives, and fails where it
// fails.
func FuzzRead(f *testing.F) {
	for _, body := range contents() {
		f.Add(compress(f, body[:min(len(body), 3000)], 6))
		f.Add(compress(f, body[:min(len(body), 3000)], 1))
	}
	random := rand.New(rand.NewPCG(5, 6))
	base := compress(f, contents()["mixed"][:3000], 6)
	for range 2000 {
		damaged := bytes.Clone(base)
		for range 1 + random.IntN(3) {
			damaged[random.IntN(len(damaged))] ^= 1 << random.IntN(8)
		}
		f.Add(damaged)
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		got, err := read(io.LimitReader(bytes.NewReader(packed), 1<<20))
		var want []byte
		z, wantErr := gzip.NewReader(bytes.NewReader(packed))
		if wantErr == nil {
			want, wantErr = io.ReadAll(z)
		}
		if err == nil && errors.Is(wantErr, gzip.ErrHeader) && bytes.HasPrefix(got, want) {
			return // the library takes names and comments of 512 bytes at most
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v; the standard library: %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that differ from the %d wanted", len(got), len(want))
		}
	})
}

func BenchmarkRead(b *testing.B) {
	body := contents()["text"]
	random, words := rand.New(rand.NewPCG(3, 4)), [][]byte{}
	for range 8000 {
		word := make([]byte, 3+random.IntN(9))
		for i := range word {
			word[i] = byte('a' + random.IntN(26))
		}
		words = append(words, append(word, ' '))
	}
	zipf := rand.NewZipf(random, 1.15, 20, 7999)
	for body = body[:0]; len(body) < 4<<20; {
		body = append(body, words[zipf.Uint64()]...)
	}
	packed := compress(b, body, 6)
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		"berth":     func(r io.Reader) (io.Reader, error) { return inflate.NewReader(r) },
		"klauspost": func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) },
		"standard":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				z, err := open(bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, z); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
