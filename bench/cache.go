package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// countEntries walks through a tree with as little work of its own as can be.
func countEntries(dir string) (n int, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return countBelow(fd, make([]byte, 32<<10))
}

func countBelow(fd int, room []byte) (n int, err error) {
	var folders []string
	for {
		got, err := unix.Getdents(fd, room)
		if err != nil {
			return n, os.NewSyscallError("getdents64", err)
		}
		if got == 0 {
			break
		}
		for rest := room[:got]; len(rest) > 0; rest = rest[binary.NativeEndian.Uint16(rest[16:]):] {
			const head = 19 // inode, offset, length, type
			name := unix.ByteSliceToString(rest[head:])
			if name == "." || name == ".." {
				continue
			}
			n++
			if rest[head-1] == unix.DT_DIR {
				folders = append(folders, name)
			}
		}
	}
	for _, name := range folders {
		below, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return n, &os.PathError{Op: "open", Path: name, Err: err}
		}
		more, err := countBelow(below, room)
		_ = unix.Close(below)
		if n += more; err != nil {
			return n, err
		}
	}
	return n, nil
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
