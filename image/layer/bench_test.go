package layer_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/image/layer"
	"berth/image/object"
)

// The image of the benchmarks: about 360 MB in 20,000 files.
const (
	layers = 50
	files  = 400 // of each
)

// image makes tars with files of sizes as they are in images: half of them
// below 4 KiB, few big ones that have most of the bytes.
func image(b *testing.B) [][]byte {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 4<<20) // text and code repeat themselves
	for i := range words {
		words[i] = byte(random.Uint32()>>28) + 'a'
	}
	var all [][]byte
	for l := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for d := range 20 {
			w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/d%d/", d), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1700000000, 0)})
		}
		for i := range files {
			size := int64(min(2500*expo(random.NormFloat64()*1.95), 24<<20))
			name := fmt.Sprintf("usr/lib/d%d/file-%d-%d.so", i%20, l, i)
			w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size, Mode: 0o644, ModTime: time.Unix(1700000000, int64(i)), Format: tar.FormatPAX})
			fmt.Fprintf(w, "%16d"[:min(int(size), 4)], l*files+i)
			for left := size - min(size, 16); left > 0; {
				n := min(left, 1<<20)
				at := random.IntN(3 << 20)
				w.Write(words[at : at+int(n)])
				left -= n
			}
			w.Flush()
		}
		w.Close()
		all = append(all, buf.Bytes())
	}
	return all
}

func expo(x float64) float64 { // e to the x, near enough
	y := 1 + x/1024
	for range 10 {
		y *= y
	}
	return y
}

// ext4 is a new file system with a journal, as hosts have it.
func ext4(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	file, target := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	os.Truncate(file, 4<<30)
	os.Mkdir(target, 0o700)
	for _, argv := range [][]string{
		{"/sbin/mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", file},
		{"/bin/mount", "-o", "loop", file, target},
	} {
		p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{nil, nil, os.Stderr}})
		if err != nil {
			b.Skipf("needs %s: %v", argv[0], err)
		}
		if state, err := p.Wait(); err != nil || !state.Success() {
			b.Skipf("%v: %v %v", argv, state, err)
		}
	}
	b.Cleanup(func() { unix.Unmount(target, 0) })
	return target
}

func cpu() time.Duration {
	var use unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &use)
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// readImage reads all layers, three at a time as a pull does.
func readImage(b *testing.B, s *object.Store, tars [][]byte, inline int, recipe bool) {
	b.Helper()
	var wg sync.WaitGroup
	next := make(chan []byte)
	for range 3 {
		wg.Go(func() {
			for t := range next {
				batch, err := s.Begin(b.Context())
				if err != nil {
					b.Error(err)
					continue
				}
				cfg := layer.Config{Objects: batch, InlineLimit: inline}
				if recipe {
					cfg.Recipe = io.Discard
				}
				if _, err := layer.Read(b.Context(), cfg, bytes.NewReader(t)); err != nil {
					b.Error(err)
				}
				batch.End()
			}
		})
	}
	for _, t := range tars {
		next <- t
	}
	close(next)
	wg.Wait()
}

func benchmark(b *testing.B, inline int, recipe, known bool) {
	tars := image(b)
	dir := ext4(b)
	total := 0
	for _, t := range tars {
		total += len(t)
	}
	var used time.Duration
	open := func(name string) *object.Store {
		s, err := object.Open(b.Context(), object.Config{Dir: filepath.Join(dir, name), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	var s *object.Store
	if known {
		s = open("known")
		readImage(b, s, tars, inline, recipe)
		s.Sync(b.Context())
	}
	b.SetBytes(int64(total))
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		if !known {
			s = open(fmt.Sprint("fresh", i))
		}
		runtime.GC()
		b.StartTimer()
		before := cpu()
		readImage(b, s, tars, inline, recipe)
		used += cpu() - before
		b.StopTimer()
		if !known {
			s.Close()
			os.RemoveAll(filepath.Join(dir, fmt.Sprint("fresh", i)))
			unix.Sync()
		}
		b.StartTimer()
	}
	b.StopTimer()
	if known {
		s.Close()
	}
	n := float64(layers * files * b.N)
	b.ReportMetric(n/b.Elapsed().Seconds(), "files/s")
	b.ReportMetric(used.Seconds()/float64(b.N), "CPU-s/op")
	b.ReportMetric(used.Seconds()*1e6/n, "CPU-us/file")
}

// BenchmarkRead reads an image whose bodies are all new, and all known, into a
// store on a file system of its own. BERTH_INLINE lists limits to try.
func BenchmarkRead(b *testing.B) {
	for inline := range strings.FieldsSeq(cmp.Or(os.Getenv("BERTH_INLINE"), fmt.Sprint(layer.InlineLimit))) {
		var limit int
		fmt.Sscan(inline, &limit)
		b.Run(fmt.Sprint("fresh/inline=", limit), func(b *testing.B) { benchmark(b, limit, false, false) })
		b.Run(fmt.Sprint("fresh+recipe/inline=", limit), func(b *testing.B) { benchmark(b, limit, true, false) })
		b.Run(fmt.Sprint("known/inline=", limit), func(b *testing.B) { benchmark(b, limit, false, true) })
		b.Run(fmt.Sprint("known+recipe/inline=", limit), func(b *testing.B) { benchmark(b, limit, true, true) })
	}
}
