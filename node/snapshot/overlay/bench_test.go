package overlay_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/node/snapshot"
)

// syntheticLayers makes the tars of an image of 20,000 files and 311 MB in 11
// layers. The bodies compress by half, as those of images do.
func syntheticLayers(tb testing.TB) [][]byte {
	tb.Helper()
	const files, layers, average = 20_000, 11, 311 << 20 / 20_000
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = "0123456789abcdef"[random.IntN(16)]
	}
	var tars [][]byte
	for layer := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for i := range files / layers {
			if i%40 == 0 {
				h := tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("usr/lib/p%d/", i/40), Mode: 0o755, ModTime: time.Unix(1_700_000_000, 0)}
				if err := w.WriteHeader(&h); err != nil {
					tb.Fatal(err)
				}
			}
			size := random.IntN(2 * average)
			h := tar.Header{
				Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/lib/p%d/file-%d-%d", i/40, layer, i), Size: int64(size),
				Mode: 0o644, ModTime: time.Unix(1_700_000_000+int64(i), 0),
			}
			if err := w.WriteHeader(&h); err != nil {
				tb.Fatal(err)
			}
			at := random.IntN(len(noise) - size)
			if _, err := w.Write(noise[at : at+size]); err != nil {
				tb.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			tb.Fatal(err)
		}
		tars = append(tars, buf.Bytes())
	}
	return tars
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIngest unpacks an image of 20,000 files, its layers side by side.
// Set BENCH_DIR to a folder on the file system to measure.
func BenchmarkIngest(b *testing.B) {
	tars := syntheticLayers(b)
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "ingest")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := open(b, dir)
	var bytesRead int64
	for _, t := range tars {
		bytesRead += int64(len(t))
	}
	b.SetBytes(bytesRead)
	b.ResetTimer()
	var cpu time.Duration
	for range b.N {
		before := cpuTime()
		var wg sync.WaitGroup
		ingests := make([]snapshot.Ingest, len(tars))
		for i, t := range tars {
			wg.Go(func() {
				in, err := s.Ingest(b.Context(), io.Reader(bytes.NewReader(t)))
				if err != nil {
					b.Error(err)
					return
				}
				ingests[i] = in
			})
		}
		wg.Wait()
		cpu += cpuTime() - before
		b.StopTimer()
		for _, in := range ingests {
			if in != nil {
				_ = in.Abort(b.Context())
			}
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
	b.StopTimer()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPrepare makes, mounts, unmounts and removes a container's tree on
// chains of several depths.
func BenchmarkPrepare(b *testing.B) {
	for _, depth := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			s := open(b, b.TempDir())
			var parent snapshot.Key
			for i := range depth {
				in, err := s.Ingest(b.Context(), bytes.NewReader(nil))
				if err != nil {
					b.Fatal(err)
				}
				name := snapshot.Key(fmt.Sprint("layer", i))
				if _, err := in.Commit(b.Context(), name, parent, nil); err != nil {
					b.Fatal(err)
				}
				parent = name
			}
			target := b.TempDir()
			var prepare, mount, unmount, remove time.Duration
			for range b.N {
				start := time.Now()
				if _, err := s.Prepare(b.Context(), "work", parent, nil); err != nil {
					b.Fatal(err)
				}
				prepared := time.Now()
				if err := s.Mount(b.Context(), "work", target); err != nil {
					b.Fatal(err)
				}
				mounted := time.Now()
				if err := s.Unmount(b.Context(), target); err != nil {
					b.Fatal(err)
				}
				unmounted := time.Now()
				if err := s.Remove(b.Context(), "work"); err != nil {
					b.Fatal(err)
				}
				prepare += prepared.Sub(start)
				mount += mounted.Sub(prepared)
				unmount += unmounted.Sub(mounted)
				remove += time.Since(unmounted)
			}
			for name, d := range map[string]time.Duration{"prepare": prepare, "mount": mount, "unmount": unmount, "remove": remove} {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N), name+"-us/op")
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkIngestKnown unpacks the same image again, when all of its files are
// known from another one.
func BenchmarkIngestKnown(b *testing.B) {
	tars := syntheticLayers(b)
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "known")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := open(b, dir)
	ingest := func(tar []byte) snapshot.Ingest {
		in, err := s.Ingest(b.Context(), bytes.NewReader(tar))
		if err != nil {
			b.Fatal(err)
		}
		return in
	}
	files := 0
	for i, tar := range tars {
		if _, err := ingest(tar).Commit(b.Context(), snapshot.Key(fmt.Sprint("layer", i)), "", nil); err != nil {
			b.Fatal(err)
		}
		files += 20_000 / len(tars)
	}
	for {
		if _, err := s.Usage(b.Context(), "layer0"); err != nil || len(kept(b, dir)) >= files {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	b.ResetTimer()
	before := cpuTime()
	for range b.N {
		for _, tar := range tars {
			if err := ingest(tar).Abort(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64((cpuTime()-before).Milliseconds())/float64(b.N), "cpu-ms/op")
	b.StopTimer()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
