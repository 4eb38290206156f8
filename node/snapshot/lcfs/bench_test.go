package lcfs_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
	"berth/node/snapshot/overlay"
)

// benchDir is a fresh folder on the file system to measure: set BENCH_DIR to a
// folder on it.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "lcfs")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func openAsIs(b *testing.B, dir string) opened {
	return open(b, dir, func(c *lcfs.Config) { c.Quiet = 0 })
}

// median reports the middle of what was measured.
func median(b *testing.B, name string, took []time.Duration) {
	var sum time.Duration
	for _, d := range took {
		sum += d
	}
	b.ReportMetric(float64(sum.Nanoseconds())/1e3/float64(len(took)), name+"-mean-us")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, name+"-us")
}

// BenchmarkPrepare makes, mounts, unmounts and removes a container's tree on
// chains of several depths.
func BenchmarkPrepare(b *testing.B) {
	for _, depth := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			s := openAsIs(b, benchDir(b))
			parent := chainOf(b, s, depth)
			target := b.TempDir()
			took := map[string][]time.Duration{}
			for b.Loop() {
				lap := time.Now()
				note := func(what string) {
					now := time.Now()
					took[what] = append(took[what], now.Sub(lap))
					lap = now
				}
				_, err := s.Prepare(b.Context(), "work", parent, nil)
				must(b, err)
				note("prepare")
				must(b, s.Mount(b.Context(), "work", target))
				note("mount")
				must(b, s.Unmount(b.Context(), target))
				note("unmount")
				must(b, s.Remove(b.Context(), "work"))
				note("remove")
			}
			for name, d := range took {
				median(b, name, d)
			}
			must(b, s.Close())
		})
	}
}

func chainOf(b *testing.B, s snapshot.Store, depth int) (top snapshot.Key) {
	for i := range depth {
		name := snapshot.Key(fmt.Sprint("layer", i))
		layer(b, s, name, top, map[string]string{fmt.Sprint("f", i): "x"})
		top = name
	}
	if s, ok := s.(interface {
		Settle(ctx context.Context, key snapshot.Key) error
	}); ok {
		must(b, s.Settle(b.Context(), top))
	}
	return top
}

// BenchmarkCommit commits snapshots in which many files changed.
func BenchmarkCommit(b *testing.B) {
	for _, files := range []int{10, 1000, 20_000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			s := openAsIs(b, benchDir(b))
			layer(b, s, "base", "", map[string]string{"f": "x"})
			target := b.TempDir()
			var unmount, commit, next []time.Duration
			n := 0
			for b.Loop() {
				b.StopTimer()
				_, err := s.Prepare(b.Context(), "work", "base", nil)
				must(b, err)
				must(b, s.Mount(b.Context(), "work", target))
				for i := range files {
					if i%100 == 0 {
						must(b, os.Mkdir(filepath.Join(target, fmt.Sprint(i/100)), 0o755))
					}
					must(b, os.WriteFile(filepath.Join(target, fmt.Sprint(i/100), fmt.Sprint(i)), bytes.Repeat([]byte{byte(n), byte(i)}, 2048), 0o644))
				}
				b.StartTimer()
				start := time.Now()
				must(b, s.Unmount(b.Context(), target))
				unmount = append(unmount, time.Since(start))
				start = time.Now()
				name := snapshot.Key(fmt.Sprint("top", n))
				_, err = s.Commit(b.Context(), name, "work", nil)
				must(b, err)
				commit = append(commit, time.Since(start))
				start = time.Now()
				_, err = s.Prepare(b.Context(), "next", name, nil)
				must(b, err)
				must(b, s.Mount(b.Context(), "next", target))
				next = append(next, time.Since(start))
				must(b, s.Unmount(b.Context(), target))
				must(b, s.Remove(b.Context(), "next"))
				n++
			}
			median(b, "unmount", unmount)
			median(b, "commit", commit)
			median(b, "next", next)
			must(b, s.Close())
		})
	}
}

// BenchmarkLives makes the storage of 100 containers on 50 layers, each with
// five files written, and destroys it, with this driver and with overlay.
func BenchmarkLives(b *testing.B) {
	drivers := map[string]func(dir string) snapshot.Store{
		"lcfs":    func(dir string) snapshot.Store { return openAsIs(b, dir) },
		"overlay": func(dir string) snapshot.Store { return openOverlay(b, dir) },
	}
	for name, openDriver := range drivers {
		b.Run(name, func(b *testing.B) {
			s := openDriver(benchDir(b))
			parent := chainOf(b, s, 50)
			took := map[string][]time.Duration{}
			before := cpuTime()
			for targets := b.TempDir(); b.Loop(); {
				lives(b, s, parent, targets, took)
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N)/containers, "cpu-us")
			for name, d := range took {
				median(b, name, d)
			}
			must(b, s.Close())
		})
	}
}

const containers = 100

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func lives(b *testing.B, s snapshot.Store, parent snapshot.Key, targets string, took map[string][]time.Duration) {
	lap := time.Now()
	note := func(what string) {
		now := time.Now()
		took[what] = append(took[what], now.Sub(lap))
		lap = now
	}
	for i := range containers {
		key, target := snapshot.Key(fmt.Sprint("c", i)), filepath.Join(targets, fmt.Sprint(i))
		_ = os.Mkdir(target, 0o755)
		note("-")
		_, err := s.Prepare(b.Context(), key, parent, nil)
		must(b, err)
		note("prepare")
		must(b, s.Mount(b.Context(), key, target))
		note("mount")
		must(b, os.Mkdir(filepath.Join(target, "new"), 0o755))
		for i := range 5 {
			must(b, os.WriteFile(filepath.Join(target, "new", fmt.Sprint(i)), make([]byte, 1024), 0o644))
		}
		note("write")
	}
	for i := range containers {
		must(b, s.Unmount(b.Context(), filepath.Join(targets, fmt.Sprint(i))))
		note("unmount")
		must(b, s.Remove(b.Context(), snapshot.Key(fmt.Sprint("c", i))))
		note("remove")
	}
}

type openedOverlay struct {
	*overlay.Store
	db *kv.DB
}

func (o openedOverlay) Close() error {
	_ = o.Store.Close()
	return o.db.Close()
}

func openOverlay(b *testing.B, dir string) snapshot.Store {
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(b, err)
	s, err := overlay.Open(b.Context(), overlay.Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler)})
	must(b, err)
	return openedOverlay{s, db}
}

// BenchmarkCrowd prepares snapshots in a store that has 10,000 already.
func BenchmarkCrowd(b *testing.B) {
	s := openAsIs(b, benchDir(b))
	layer(b, s, "base", "", map[string]string{"f": "x"})
	var first, last []time.Duration
	const crowd = 10_000
	for i := range crowd {
		start := time.Now()
		_, err := s.Prepare(b.Context(), snapshot.Key(fmt.Sprint("c", i)), "base", nil)
		must(b, err)
		if took := time.Since(start); i < 200 {
			first = append(first, took)
		} else if i >= crowd-200 {
			last = append(last, took)
		}
	}
	median(b, "first", first)
	median(b, "last", last)
	must(b, s.Close())
}

// BenchmarkSettle settles a layer of 20,000 files.
func BenchmarkSettle(b *testing.B) {
	s := open(b, benchDir(b), func(c *lcfs.Config) { c.Quiet = time.Hour })
	var cpu time.Duration
	const files = 20_000
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		_, err := s.Prepare(b.Context(), "work", "", nil)
		must(b, err)
		change(b, s, "work", func(root string) {
			for i := range files {
				if i%100 == 0 {
					must(b, os.Mkdir(filepath.Join(root, fmt.Sprint(i/100)), 0o755))
				}
				must(b, os.WriteFile(filepath.Join(root, fmt.Sprint(i/100), fmt.Sprint(i)), fmt.Appendf(nil, "%d %d %2000d", n, i, i), 0o644))
			}
		})
		name := snapshot.Key(fmt.Sprint("top", n))
		_, err = s.Commit(b.Context(), name, "work", nil)
		must(b, err)
		must(b, s.Sync(b.Context()))
		before := cpuTime()
		b.StartTimer()
		must(b, s.Settle(b.Context(), name))
		cpu += cpuTime() - before
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(b.N)/files, "cpu-us/file")
	must(b, s.Close())
}
