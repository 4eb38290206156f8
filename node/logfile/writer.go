package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Writer appends records to a log and rotates it. It is not safe for
// concurrent use: the order of a log is the order of its owner's lock.
//
// Rotation renames path to path.1, path.1 to path.2, and so on.
type Writer struct {
	path     string
	maxSize  int64
	maxFiles int

	file  *os.File
	inode uint64
	size  int64
}

// OpenWriter opens the log at path to append to it, and creates it. Files
// are rotated before they grow beyond maxSize (0: never), and maxFiles of
// them are kept, the current one included (less than 2: just that one).
func OpenWriter(path string, maxSize int64, maxFiles int) (*Writer, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	w := &Writer{path: filepath.Join(dir, filepath.Base(path)), maxSize: maxSize, maxFiles: max(maxFiles, 1)}
	if err := w.Reopen(); err != nil {
		return nil, err
	}
	return w, nil
}

// Reopen opens path anew, after somebody else has renamed the file.
func (w *Writer) Reopen() error {
	f, err := open(w.path, unix.O_WRONLY|unix.O_APPEND, true)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	inode, size, err := identify(f)
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	old := w.file
	w.file, w.inode, w.size = f, inode, size
	if old != nil {
		return old.Close()
	}
	return nil
}

// open opens the log at path, and makes it if it may. Containers that the folder
// of logs is mounted into can put anything there, at any time: no link is
// followed, and nothing but a file is so much as opened, for a pipe would hold
// us up, and a device do who knows what.
func open(path string, flags int, create bool) (*os.File, error) {
	resolved := func(flags int, mode uint64) (int, error) {
		how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: mode, Resolve: unix.RESOLVE_NO_SYMLINKS}
		for {
			fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
			if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return -1, &os.PathError{Op: "open", Path: path, Err: err}
			}
			if err == nil {
				return fd, nil
			}
		}
	}
	for {
		place, err := resolved(unix.O_PATH|unix.O_NOFOLLOW, 0)
		if create && errors.Is(err, fs.ErrNotExist) {
			fd, err := resolved(flags|unix.O_CREAT|unix.O_EXCL, 0o640)
			if errors.Is(err, fs.ErrExist) { // made meanwhile
				continue
			}
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != nil {
			return nil, err
		}
		defer unix.Close(place)
		var st unix.Stat_t
		if err := unix.Fstat(place, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, errs.New(errs.Invalid, "%s is not a file", path)
		}
		return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", place), flags, 0)
	}
}

// Where returns the file and the offset at which the next record will be.
func (w *Writer) Where() (inode uint64, offset int64) { return w.inode, w.size }

// Room is how many bytes of records Write should get at once, at most max,
// so that files keep to their size.
func (w *Writer) Room(most int) int {
	if w.maxSize <= 0 {
		return most
	}
	return max(MaxRecord, int(min(int64(most), w.maxSize)))
}

// Reserve rotates the log if n more bytes would be too many. To rotate is
// best effort: a log that is too big is better than none.
func (w *Writer) Reserve(n int) error {
	if w.maxSize <= 0 || w.size == 0 || w.size+int64(n) <= w.maxSize {
		return nil
	}
	return w.rotate()
}

func (w *Writer) rotate() error {
	if w.maxFiles == 1 {
		if err := os.Remove(w.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
		return w.Reopen()
	}
	// Up to the first free name: one that a killed writer left free in the
	// middle is filled, so there is never more than one.
	last := 1
	for last < w.maxFiles-1 && exists(Rotated(w.path, last)) {
		last++
	}
	for i := last; i > 0; i-- {
		err := os.Rename(Rotated(w.path, i-1), Rotated(w.path, i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	return w.Reopen()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Write appends records. What could not be written whole is taken back, so
// that a full disk leaves no torn record behind.
func (w *Writer) Write(records []byte) error {
	n, err := w.file.Write(records)
	if err != nil && n > 0 {
		if e := w.file.Truncate(w.size); e != nil {
			return errors.Join(err, e)
		}
		n = 0
	}
	w.size += int64(n)
	return err
}

// Rewrite writes records that may already be there, whole or in part or not
// at all, at the place that Where gave before. Records of the same text have
// the same lengths, so it overwrites them in place, under the eyes of readers.
func (w *Writer) Rewrite(inode uint64, offset int64, records []byte) error {
	if inode == w.inode && offset <= w.size {
		return w.overwrite(offset, records)
	}
	// Renamed by somebody else, who has not told us yet: what of the
	// records got into the renamed file is cut off there.
	if name, ok := find(filepath.Dir(w.path), inode); ok {
		if info, err := os.Stat(name); err == nil && info.Size() > offset {
			if err := os.Truncate(name, offset); err != nil {
				return err
			}
		}
	}
	return w.Write(records)
}

func (w *Writer) overwrite(offset int64, records []byte) error {
	f, err := open(w.path, unix.O_WRONLY, false) // without O_APPEND
	if err != nil {
		return err
	}
	_, err = f.WriteAt(records, offset)
	_, w.size, _ = identify(f)
	return errors.Join(err, f.Close())
}

// Close closes the file.
func (w *Writer) Close() error { return w.file.Close() }

// Rotated is the name of the n-th file of the log at path, 0 being the
// current one.
func Rotated(path string, n int) string {
	if n == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, n)
}

func identify(f *os.File) (inode uint64, size int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	return inodeOf(info), info.Size(), nil
}

func inodeOf(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

func find(dir string, inode uint64) (string, bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && inodeOf(info) == inode {
			return filepath.Join(dir, e.Name()), true
		}
	}
	return "", false
}
