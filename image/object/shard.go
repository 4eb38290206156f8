package object

import (
	"encoding/hex"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// shard is the bodies whose digests begin with one byte. Its lock is never
// held while a body is read, written or deleted: the digest is busy then, and
// only who wants the very same one waits.
type shard struct {
	folder string // two hex digits
	mu     sync.Mutex
	done   sync.Cond // some digest is no longer busy
	dir    int       // descriptor of the folder, once listed
	listed bool
	known  set
	busy   map[key]struct{}
	pinned map[key]int32 // by how many Puts and Pins of batches
}

func (sh *shard) init(i int) {
	sh.folder = hex.EncodeToString([]byte{byte(i)})
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
	if sh.dir < 0 {
		fd, err := openFolder(s.fd, sh.folder)
		if err != nil {
			return fmt.Errorf("open objects/%s: %w", sh.folder, full(err))
		}
		sh.dir = fd
	}
	var first [1]byte
	_, _ = hex.Decode(first[:], []byte(sh.folder))
	found, err := list(sh.dir, first[0])
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

func openFolder(at int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, name, flags, 0)
	if err != unix.ENOENT { //nolint:errorlint // a bare errno
		return fd, err
	}
	if err := unix.Mkdirat(at, name, 0o700); err != nil && err != unix.EEXIST { //nolint:errorlint // a bare errno
		return -1, err
	}
	return unix.Openat(at, name, flags, 0)
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
