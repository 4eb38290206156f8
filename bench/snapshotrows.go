package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// commitCounts are the changed files of the commits, chainDepths the layers
// of the chains, and containerCounts what LCFS's own test took.
func commitCounts() []int    { return []int{10, 1_000, 20_000} }
func chainDepths() []int     { return []int{1, 10, 100} }
func containerCounts() []int { return []int{20, 40, 60, 80, 100} }

// commits measures the commit of changed files, unmounted before.
func (s *storage) commits(ctx context.Context) error {
	small, err := s.smallLayers(1)
	if err != nil {
		return err
	}
	for _, w := range s.pair() {
		if _, err := w.unpack("commit", small); err != nil {
			return err
		}
	}
	for _, n := range commitCounts() {
		rounds := 5
		if n > 10_000 {
			rounds = 3
		}
		err := s.rounds(ctx, rounds, s.pair(), func(w *worker) error { return s.commit(ctx, w, n) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *storage) commit(ctx context.Context, w *worker, n int) error {
	key, target, _, err := s.mounted(w, "commit.1", false)
	if err != nil {
		return err
	}
	if err := s.write(target, n, 4096); err != nil {
		return err
	}
	before, err := w.cpu()
	if err != nil {
		return err
	}
	unmount, err := w.do(request{Verb: "unmount", Path: target})
	if err != nil {
		return err
	}
	layer := w.name("layer")
	commit, err := w.do(request{Verb: "commit", Key: layer, Parent: key})
	if err != nil {
		return err
	}
	sync, err := w.do(request{Verb: "sync"})
	if err != nil {
		return err
	}
	row := fmt.Sprintf("storage-commit-%d", n)
	s.results.add(row, w.column, milliseconds(commit))
	s.results.add(row+"-unmount", w.column, milliseconds(unmount+commit))
	s.results.add(row+"-sync", w.column, milliseconds(unmount+commit+sync))
	if err := rest(ctx, w); err != nil {
		return err
	}
	after, err := w.cpu()
	s.results.add(row+"-cpu", w.column, milliseconds(after-before))
	if err != nil {
		return err
	}
	return w.removeAll([]string{layer})
}

// chains measures a new writable snapshot on chains of several depths.
func (s *storage) chains(ctx context.Context) error {
	const block, rounds = 10, 5
	for _, depth := range chainDepths() {
		layers, err := s.smallLayers(depth)
		if err != nil {
			return err
		}
		tag := fmt.Sprintf("chain%d", depth)
		for _, w := range s.pair() {
			keys, err := w.unpack(tag, layers)
			if err != nil {
				return err
			}
			if _, err := w.do(request{Verb: "settle", Key: keys[depth-1]}); err != nil {
				return err
			}
		}
		top := fmt.Sprintf("%s.%d", tag, depth)
		err = s.rounds(ctx, rounds, s.pair(), func(w *worker) error {
			for range block {
				key, target, took, err := s.mounted(w, top, false)
				if err != nil {
					return err
				}
				s.results.add(fmt.Sprintf("storage-chain-%d", depth), w.column, milliseconds(took))
				if _, err := w.all(request{Verb: "unmount", Path: target}, request{Verb: "remove", Key: key}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, w := range s.pair() {
		least, most := 0.0, 0.0
		for i, depth := range chainDepths() {
			took := s.results.median(fmt.Sprintf("storage-chain-%d", depth), w.column)
			if i == 0 {
				least = took
			}
			least, most = min(least, took), max(most, took)
		}
		s.results.add("storage-chain-flat", w.column, most/least)
	}
	return nil
}

func (s *storage) top(w *worker) string { return s.base[w][len(s.base[w])-1] }

// containers measures the storage of many containers: all of them made, a
// few files written in each, all of them removed; again with more of them.
func (s *storage) containers(ctx context.Context) error {
	return s.rounds(ctx, 3, s.workers, func(w *worker) error {
		before, err := w.cpu()
		if err != nil {
			return err
		}
		var sum time.Duration
		for _, n := range containerCounts() {
			took, err := s.manyContainers(w, n)
			if err != nil {
				return err
			}
			sum += took
		}
		s.results.add("storage-containers", w.column, milliseconds(sum))
		if err := rest(ctx, w); err != nil {
			return err
		}
		after, err := w.cpu()
		s.results.add("storage-containers-cpu", w.column, milliseconds(after-before))
		return err
	})
}

func (s *storage) manyContainers(w *worker, n int) (sum time.Duration, err error) {
	var ends [][]request
	for range n {
		key, target, took, err := s.mounted(w, s.top(w), false)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		if err := s.write(target, 5, 1024); err != nil {
			return 0, err
		}
		sum += took + time.Since(began)
		ends = append(ends, []request{{Verb: "unmount", Path: target}, {Verb: "remove", Key: key}})
	}
	for _, end := range ends {
		took, err := w.all(end...)
		if err != nil {
			return 0, err
		}
		sum += took
	}
	return sum, nil
}

// build measures steps as those of a build: clone, change files, commit.
func (s *storage) build(ctx context.Context) error {
	source := newSource()
	err := s.rounds(ctx, 5, s.pair(), func(w *worker) error {
		before, err := w.cpu()
		if err != nil {
			return err
		}
		layers, own, changes, err := s.steps(w, source, false)
		if err != nil {
			return err
		}
		s.results.add("storage-build", w.column, milliseconds(own+changes))
		s.results.add("storage-build-own", w.column, milliseconds(own))
		if err := rest(ctx, w); err != nil {
			return err
		}
		after, err := w.cpu()
		if err != nil {
			return err
		}
		s.results.add("storage-build-cpu", w.column, milliseconds(after-before))
		return w.removeAll(layers)
	})
	if err != nil {
		return err
	}
	return s.rounds(ctx, 5, s.pair(), func(w *worker) error {
		layers, own, changes, err := s.steps(w, source, true)
		if err != nil {
			return err
		}
		s.results.add("storage-build-volatile", w.column, milliseconds(own+changes))
		return w.removeAll(layers)
	})
}

// steps makes a chain of forty layers, and returns them with the time of the
// store's part and that of the changes themselves.
func (s *storage) steps(w *worker, source *source, volatile bool) (layers []string, own, changes time.Duration, err error) {
	parent := s.top(w)
	for step := range 40 {
		key, target, took, err := s.mounted(w, parent, volatile)
		if err != nil {
			return nil, 0, 0, err
		}
		began := time.Now()
		if err := s.change(target, source, step); err != nil {
			return nil, 0, 0, err
		}
		changes += time.Since(began)
		parent = w.name("step")
		ended, err := w.all(request{Verb: "unmount", Path: target}, request{Verb: "commit", Key: parent, Parent: key})
		if err != nil {
			return nil, 0, 0, err
		}
		layers = append(layers, parent)
		own += took + ended
	}
	return layers, own, changes, nil
}

// change changes 200 files: of those that are there it writes 40 anew and
// removes 10, and it makes 150.
func (s *storage) change(root string, source *source, step int) error {
	const anew, gone = 40, 10
	for i := range anew + gone {
		name := filepath.Join(root, source.names[(step*(anew+gone)+i)*7%layeredFiles])
		if i >= anew {
			if err := os.Remove(name); err != nil {
				return err
			}
			continue
		}
		s.random++
		if err := os.WriteFile(name, fmt.Appendf(nil, "%08000d", s.random), 0o644); err != nil {
			return err
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("step%02d", step))
	return s.write(dir, 150, 8000)
}

// walk measures the CPU time of a walk through the whole tree, and of asking
// for each file after it, when nothing is cached.
func (s *storage) walk(ctx context.Context) error {
	return s.rounds(ctx, 3, s.workers, func(w *worker) error {
		key, target := w.name("view"), s.place.run("walk")
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if _, err := w.all(request{Verb: "view", Key: key, Parent: s.top(w)}, request{Verb: "mount", Key: key, Path: target}); err != nil {
			return err
		}
		if err := s.dropCaches(); err != nil {
			return err
		}
		var files []string
		began := time.Now()
		walked, err := ofThread(func() (err error) {
			files, err = regular(target)
			return err
		})
		if err != nil {
			return err
		}
		s.results.add("storage-walk-wall", w.column, milliseconds(time.Since(began)))
		s.results.add("storage-walk", w.column, milliseconds(walked))
		asked, err := ofThread(func() error {
			var st unix.Stat_t
			for _, name := range files {
				if err := unix.Lstat(name, &st); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(files) < layeredFiles {
			return fmt.Errorf("only %d files in %s", len(files), w.column)
		}
		s.results.add("storage-walk-stat", w.column, milliseconds(asked))
		_, err = w.all(request{Verb: "unmount", Path: target}, request{Verb: "remove", Key: key})
		return err
	})
}

// regular lists the regular files below dir.
func regular(dir string) (files []string, err error) {
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, name)
		}
		return err
	})
	return files, err
}

// ofThread is the CPU time that do takes on a thread of its own.
func ofThread(do func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &before); err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	err := unix.Getrusage(unix.RUSAGE_THREAD, &after)
	return time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()), err
}

// dropCaches empties the kernel's caches of what is on disk.
func (s *storage) dropCaches() error {
	if err := s.place.sync(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// cache reads one image whole and then another that shares nine tenths of its
// bytes, and counts the pages of the store's files that are in memory.
func (s *storage) cache(ctx context.Context) error {
	for _, w := range s.pair() {
		near, err := s.unpack(w, "near")
		if err != nil {
			return err
		}
		if err := s.restAll(ctx); err != nil {
			return err
		}
		tops := []string{s.top(w), near[len(near)-1]}
		var targets []string
		var ends []request
		for i, top := range tops {
			key, target := w.name("view"), s.place.run("cache", fmt.Sprint(i))
			if err := os.MkdirAll(target, 0o755); err != nil {
				return err
			}
			if _, err := w.all(request{Verb: "view", Key: key, Parent: top}, request{Verb: "mount", Key: key, Path: target}); err != nil {
				return err
			}
			targets = append(targets, target)
			ends = append(ends, request{Verb: "unmount", Path: target}, request{Verb: "remove", Key: key})
		}
		if err := s.dropCaches(); err != nil {
			return err
		}
		var pages []uint64
		for _, target := range targets {
			if err := readAll(target); err != nil {
				return err
			}
			n, err := cached(w.dir)
			if err != nil {
				return err
			}
			pages = append(pages, n)
		}
		s.results.add("storage-cache-pages", w.column, float64(pages[1])*float64(os.Getpagesize())/1e6)
		s.results.add("storage-cache", w.column, float64(pages[1])/float64(pages[0]))
		if _, err := w.all(ends...); err != nil {
			return err
		}
		if err := w.removeAll(near); err != nil {
			return err
		}
	}
	return nil
}

func readAll(dir string) error {
	files, err := regular(dir)
	if err != nil {
		return err
	}
	for _, name := range files {
		if _, err := os.ReadFile(name); err != nil {
			return err
		}
	}
	return nil
}

// cached counts the pages in memory of all files below dir, each inode once.
func cached(dir string) (pages uint64, err error) {
	files, err := regular(dir)
	if err != nil {
		return 0, err
	}
	seen := map[uint64]bool{}
	for _, name := range files {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			continue // the background removed it
		}
		if seen[st.Ino] || st.Size == 0 {
			continue
		}
		seen[st.Ino] = true
		n, err := cachedPages(name)
		if err != nil {
			return 0, fmt.Errorf("cachestat %s: %w", name, err)
		}
		pages += n
	}
	return pages, nil
}

// cachedPages asks cachestat(2).
func cachedPages(name string) (uint64, error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	span := struct{ off, n uint64 }{}
	stat := struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 }{}
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, file.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return stat.cached, nil
}
