package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// ingest is a layer in its folder, named by no record yet.
type ingest struct {
	store *Store
	id    string
	size  int64
	usage snapshot.Usage
	// opaque: the layer's root hides everything below.
	opaque bool
	// implied are folders that the tar has files in but says nothing of; they
	// look as they do in the parent. "." is the root.
	implied []string

	mu   sync.Mutex
	done bool // committed or dropped
}

// Ingest unpacks layer straight into the folder that it stays in.
func (s *Store) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	id := s.newID()
	in, err := s.unpack(ctx, id, layer)
	if err != nil {
		if e := s.delete(context.WithoutCancel(ctx), id); e != nil {
			s.log.ErrorContext(ctx, "layer is kept for the next start to delete", "layer", id, "error", e)
		}
		return nil, fmt.Errorf("unpack layer: %w", full(err))
	}
	return in, nil
}

func (s *Store) unpack(ctx context.Context, id string, layer io.Reader) (*ingest, error) {
	if err := unix.Mkdirat(s.dirfd, id, 0o700); err != nil {
		return nil, fmt.Errorf("make layer folder: %w", err)
	}
	if err := unix.Mkdirat(s.dirfd, id+"/fs", 0o755); err != nil {
		return nil, fmt.Errorf("make layer folder: %w", err)
	}
	root, err := unix.Openat(s.dirfd, id+"/fs", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer folder: %w", err)
	}
	u := newUnpacker(root, s.umask, s.maxLayer)
	defer u.close()
	if err := u.run(ctx, layer); err != nil {
		return nil, err
	}
	return &ingest{
		store: s, id: id, size: u.size, usage: u.usage(),
		opaque: u.dirs["."].opaque, implied: u.implied(),
	}, nil
}

func (in *ingest) Size() int64 { return in.size }

// Abort drops the layer.
func (in *ingest) Abort(context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.done {
		in.done = true
		in.store.sweeper.add(in.id)
	}
	return nil
}

// Commit names the layer. Folders that its tar only implied get the looks
// that they have in the parent.
func (in *ingest) Commit(ctx context.Context, name, parent snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.done {
		return snapshot.Committed{}, errs.New(errs.Conflict, "commit layer %s: it is committed or dropped already", name)
	}
	s := in.store
	rec, err := s.claim(ctx, snapshot.KindCommitted, name, parent, labels)
	if err == nil {
		if err = s.dressImplied(in, parent); err != nil {
			s.release(rec)
		}
	}
	if errors.Is(err, errs.Exists) {
		in.done = true
		s.sweeper.add(in.id)
	}
	if err != nil {
		return snapshot.Committed{}, fmt.Errorf("commit layer: %w", full(err))
	}
	in.done = true
	rec.ID = in.id // the id that claim chose was never used
	rec.Boot, rec.Opaque, rec.Usage = s.boot, in.opaque, &in.usage
	info := s.settle(rec)
	s.markUnsafe()
	return snapshot.Committed{Info: info}, nil
}

// dressImplied copies mode, owner, times and xattrs of implied folders from
// the parent's tree.
func (s *Store) dressImplied(in *ingest, parent snapshot.Key) error {
	if parent == "" || len(in.implied) == 0 {
		return nil
	}
	s.mu.RLock()
	chain, err := s.chainLocked(parent)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	slices.Sort(in.implied)
	// Deepest first: copying to a folder does not change the times of another,
	// but a folder without search permission comes after what is in it.
	for _, name := range slices.Backward(in.implied) {
		from, found, err := s.lookUp(chain, name)
		if err != nil || !found {
			if err != nil {
				return err
			}
			continue
		}
		if err := copyLooks(from, path.Join(s.fs(in.id), name)); err != nil {
			return err
		}
	}
	return nil
}

// lookUp finds the folder name in the tree that chain makes, topmost layer
// first, and returns its path in the layer that shows it.
func (s *Store) lookUp(chain []*record, name string) (string, bool, error) {
	for _, layer := range chain {
		dir, hidden := s.fs(layer.ID), false
		missing := false
		for part := range strings.SplitSeq(name, "/") {
			if part == "." {
				break
			}
			dir += "/" + part
			var st unix.Stat_t
			err := unix.Lstat(dir, &st)
			if isAny(err, unix.ENOENT) {
				missing = true
				break
			}
			if err != nil {
				return "", false, fmt.Errorf("look up %s: %w", dir, err)
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return "", false, nil // deleted or replaced here
			}
			hidden = hidden || isOpaque(dir)
		}
		if !missing {
			return dir, true, nil
		}
		if hidden {
			return "", false, nil
		}
	}
	return "", false, nil
}

// copyLooks gives the folder to what the folder from has beside its content.
func copyLooks(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return fmt.Errorf("look at %s: %w", from, err)
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("own %s: %w", to, err)
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("mode of %s: %w", to, err)
	}
	attrs, err := listXattrs(from)
	if err != nil {
		return err
	}
	for _, name := range attrs {
		if strings.HasPrefix(name, overlayXattr) {
			continue
		}
		value, err := getXattr(from, name)
		if err == nil {
			err = unix.Lsetxattr(to, name, value, 0)
		}
		if err != nil && !isAny(err, unix.ENOTSUP, unix.ENODATA) {
			return fmt.Errorf("xattr %s of %s: %w", name, to, err)
		}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times of %s: %w", to, err)
	}
	return nil
}
