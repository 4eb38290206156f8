package object

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// List lists the bodies on disk whose digests begin with the byte first, in
// their order.
func (s *Store) List(first byte) ([]tree.Digest, error) {
	sh := &s.shards[first]
	sh.mu.Lock()
	err := sh.load(s)
	dir := sh.dir
	sh.mu.Unlock()
	if err != nil || dir < 0 {
		return nil, err
	}
	found, err := list(dir, first)
	if err != nil {
		return nil, fmt.Errorf("list objects: %w", err)
	}
	slices.SortFunc(found, tree.Digest.Compare)
	return found, nil
}

// Stat looks at the file of the body d. Its error is unix.ENOENT where there
// is none.
func (s *Store) Stat(d tree.Digest) (st unix.Stat_t, err error) {
	sh := s.shard(d)
	sh.mu.Lock()
	err = sh.load(s)
	dir := sh.dir
	sh.mu.Unlock()
	switch {
	case err != nil:
		return st, err
	case dir < 0:
		return st, unix.ENOENT
	}
	err = unix.Fstatat(dir, name(d), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("look at object %x: %w", d, err)
	}
	return st, err
}

// StatFolder looks at the folder that List lists; false where there is none.
func (s *Store) StatFolder(first byte) (st unix.Stat_t, found bool) {
	sh := &s.shards[first]
	return st, unix.Fstatat(s.fd, sh.folder, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Wait waits until nobody is just storing or deleting the body d.
func (s *Store) Wait(d tree.Digest) {
	sh, k := s.shard(d), keyOf(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for sh.isBusy(k) {
		sh.done.Wait()
	}
}
