package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prefix is what the folders of all machines begin with.
const prefix = "bt-"

// claim makes a folder that is locked before it has its name: nobody ever sees
// one that seems to be nobody's.
func claim() (dir string, lock *os.File, err error) {
	fresh, err := os.MkdirTemp("", "fresh-"+prefix)
	if err != nil {
		return "", nil, err
	}
	if err := os.Chmod(fresh, 0o711); err != nil { //nolint:gosec // containers with shifted owners reach their files through it
		return "", nil, err
	}
	if lock, err = held(fresh); err != nil {
		return "", nil, err
	}
	dir = filepath.Join(filepath.Dir(fresh), strings.TrimPrefix(filepath.Base(fresh), "fresh-"))
	return dir, lock, os.Rename(fresh, dir)
}

// held locks a folder. unix.EWOULDBLOCK: it is somebody's.
func held(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes the machines that have no process any more.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := held(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // in use, or another one sweeps
		}
		if err == nil {
			err = errors.Join(remove(dir), lock.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remove takes away what is left of a machine without processes: cgroups that
// bear its name or belong to nodes in its folder, and the folder. Its last
// processes may be about to end.
func remove(dir string) (err error) {
	names := []string{"*" + filepath.Base(dir) + "*"}
	for _, pattern := range []string{"*/state", "*/*/state"} {
		states, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, state := range states {
			names = append(names, Instance(state))
		}
	}
	for range 200 {
		err = nil
		for _, name := range names {
			err = errors.Join(err, removeCgroups(name))
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err == nil {
			return nil
		}
		<-time.After(50 * time.Millisecond)
	}
	return err
}

// removeCgroups removes those that match, in every hierarchy, with all below.
func removeCgroups(pattern string) (err error) {
	for _, dir := range slices.Backward(cgroups(pattern)) {
		if gone := os.Remove(dir); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// cgroups are those that match, in every hierarchy, with all below; each comes
// after the one that it is in.
func cgroups(pattern string) (all []string) {
	for _, where := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(filepath.Join(where, pattern))
		for _, top := range found {
			_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					all = append(all, path)
				}
				return nil
			})
		}
	}
	return all
}
