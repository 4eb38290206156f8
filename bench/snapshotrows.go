package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

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
		for _, w := range s.pair() {
			keys, err := w.unpack(fmt.Sprintf("chain%d", depth), layers)
			if err != nil {
				return err
			}
			if _, err := w.do(request{Verb: "settle", Key: keys[depth-1]}); err != nil {
				return err
			}
		}
	}
	err := s.rounds(ctx, rounds, s.pair(), func(w *worker) error {
		for range block {
			for _, depth := range chainDepths() {
				key, target, took, err := s.mounted(w, fmt.Sprintf("chain%d.%d", depth, depth), false)
				if err != nil {
					return err
				}
				s.results.add(chainRow(depth), w.column, milliseconds(took))
				if _, err := w.all(request{Verb: "unmount", Path: target}, request{Verb: "remove", Key: key}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, w := range s.pair() {
		var took []float64
		for _, depth := range chainDepths() {
			took = append(took, s.results.median(chainRow(depth), w.column))
		}
		s.results.add("storage-chain-flat", w.column, slices.Max(took)/slices.Min(took))
	}
	return nil
}

func chainRow(depth int) string { return fmt.Sprintf("storage-chain-%d", depth) }

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

// change changes 200 files: of those that are there, in a few folders, it
// writes 40 anew and removes 10, and it makes 150.
func (s *storage) change(root string, source *source, step int) error {
	const anew, gone, folders = 40, 10, 2500 // files i and i+2500 share one
	for i := range anew + gone {
		name := filepath.Join(root, source.names[step*8+i/8+i%8*folders])
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
	names := newSource().names
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
		found := 0
		began := time.Now()
		walked, err := ofThread(func() (err error) {
			found, err = countEntries(target)
			return err
		})
		if err != nil {
			return err
		}
		s.results.add("storage-walk-wall", w.column, milliseconds(time.Since(began)))
		s.results.add("storage-walk", w.column, milliseconds(walked))
		asked, err := ofThread(func() error {
			var st unix.Stat_t
			for _, name := range names {
				if err := unix.Lstat(filepath.Join(target, name), &st); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if found < layeredFiles {
			return fmt.Errorf("only %d entries in %s", found, w.column)
		}
		s.results.add("storage-walk-stat", w.column, milliseconds(asked))
		_, err = w.all(request{Verb: "unmount", Path: target}, request{Verb: "remove", Key: key})
		return err
	})
}
