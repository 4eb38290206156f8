package object

import (
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// shard is the bodies whose digests begin with one byte. Its lock is never
// held while a body is read, written or deleted: the digest is busy then, and
// only who wants the very same one waits.
type shard struct {
	first  byte
	folder string // its two hex digits
	mu     sync.Mutex
	done   sync.Cond // some digest is no longer busy
	dir    int       // descriptor of the folder, -1 where there is none
	listed bool
	known  set
	busy   map[key]struct{}
	pinned map[key]int32 // by how many Puts and Pins of batches
}

func (sh *shard) init(i int) {
	sh.first = byte(i)
	sh.folder = hex.EncodeToString([]byte{sh.first})
	sh.done.L = &sh.mu
	sh.dir = -1
	sh.busy = map[key]struct{}{}
	sh.pinned = map[key]int32{}
}

func (sh *shard) close() error {
	if sh.dir < 0 {
		return nil
	}
	return unix.Close(sh.dir)
}

// load reads which bodies are on disk, once. The lock is held.
func (sh *shard) load(s *Store) error {
	if sh.listed {
		return nil
	}
	err := sh.open(s)
	if errors.Is(err, unix.ENOENT) {
		sh.listed = true
		return nil
	}
	if err != nil {
		return err
	}
	found, err := list(sh.dir, sh.first)
	if err != nil {
		return fmt.Errorf("list objects/%s: %w", sh.folder, err)
	}
	sh.known.room(len(found))
	for _, d := range found {
		sh.known.add(keyOf(d))
	}
	sh.listed = true
	return nil
}

// make is load for who wants to store a body.
func (sh *shard) make(s *Store) error {
	if err := sh.load(s); err != nil || sh.dir >= 0 {
		return err
	}
	if err := unix.Mkdirat(s.fd, sh.folder, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make objects/%s: %w", sh.folder, errs.Full(err))
	}
	return sh.open(s)
}

func (sh *shard) open(s *Store) error {
	if sh.dir >= 0 {
		return nil
	}
	fd, err := unix.Openat(s.fd, sh.folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open objects/%s: %w", sh.folder, err)
	}
	sh.dir = fd
	return nil
}

// list gives the digests of the objects in the folder of the byte first.
func list(dir int, first byte) ([]tree.Digest, error) {
	// An own description of the folder, for its place in the list is its own.
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var found []tree.Digest
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return found, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			d := tree.Digest{first}
			if len(name) != 62 {
				continue
			}
			if _, err := hex.Decode(d[1:], []byte(name)); err == nil {
				found = append(found, d)
			}
		}
	}
}

// claim makes the digest of k busy for the caller, who must release it. It
// waits for who has it.
func (sh *shard) claim(k key) {
	for sh.isBusy(k) {
		sh.done.Wait()
	}
	sh.busy[k] = struct{}{}
}

func (sh *shard) isBusy(k key) bool { _, busy := sh.busy[k]; return busy }

// release ends a claim. The lock is held.
func (sh *shard) release(k key) {
	delete(sh.busy, k)
	sh.done.Broadcast()
}
