package lcfs

import (
	"context"
	"crypto/sha256"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

// checkBlocks are what files are read into.
var checkBlocks = sync.Pool{New: func() any { b := make([]byte, object.Block); return &b }}

// digestOf hashes a file as it is on disk: past the page cache, where the file
// system lets it, which then also keeps what it has for those who need it.
func digestOf(ctx context.Context, path string, pace pacer) (sum tree.Digest, size int64, err error) {
	fd, err := openDirect(path)
	if err != nil {
		return sum, 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return sum, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	block := checkBlocks.Get().(*[]byte)
	defer checkBlocks.Put(block)
	hash := sha256.New()
	for {
		if err := pace(ctx, min(object.Block, st.Size-size)); err != nil {
			return sum, size, err
		}
		n, err := readDirect(fd, *block, size, st.Size)
		if err != nil {
			return sum, size, &os.PathError{Op: "read", Path: path, Err: err}
		}
		hash.Write((*block)[:n])
		if size += int64(n); n < len(*block) || size == st.Size {
			hash.Sum(sum[:0])
			return sum, size, nil
		}
	}
}

func openDirect(path string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME
	fd, err := unix.Open(path, flags|unix.O_DIRECT, 0)
	if errs.IsAny(err, unix.EINVAL) {
		fd, err = unix.Open(path, flags, 0)
	}
	return fd, err
}

// readDirect fills block from offset, or reads what there is up to end.
func readDirect(fd int, block []byte, offset, end int64) (n int, err error) {
	for direct := true; n < len(block) && offset+int64(n) < end; {
		got, err := unix.Pread(fd, block[n:], offset+int64(n))
		switch {
		case errs.IsAny(err, unix.EINTR):
		case errs.IsAny(err, unix.EINVAL) && direct: // it is not as the file system wants it
			direct = false
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
				return n, err
			}
		case err != nil:
			return n, err
		case got == 0:
			return n, nil
		default:
			n += got
		}
	}
	return n, nil
}
