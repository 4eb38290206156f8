package object

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// verityArg is the kernel's struct fsverity_enable_arg.
type verityArg struct {
	version, algorithm, blockSize, saltSize uint32
	salt                                    uint64
	sigSize, _                              uint32
	sig                                     uint64
	_                                       [11]uint64
}

const enableVerity = 0x40806685 // FS_IOC_ENABLE_VERITY

// Seal has the kernel check the body d whenever it is read (fs-verity), and
// says whether it does: not every file system can. A sealed body can be
// replaced and deleted, but no longer written.
func (s *Store) Seal(ctx context.Context, d tree.Digest) (bool, error) {
	if err := ctx.Err(); err != nil || s.noVerity.Load() {
		return false, err
	}
	f, err := s.Open(d)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sealed, err := SealFile(f)
	if err != nil {
		return false, fmt.Errorf("seal object %x: %w", d, full(err))
	}
	if !sealed {
		s.noVerity.Store(true)
	}
	return sealed, nil
}

// SealFile is Seal for a file that is no object. It must not be open for
// writing.
func SealFile(f *os.File) (bool, error) {
	arg := verityArg{version: 1, algorithm: 1 /* sha256 */, blockSize: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), enableVerity, uintptr(unsafe.Pointer(&arg)))
	switch errno {
	case 0, unix.EEXIST:
		return true, nil
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS:
		return false, nil
	}
	return false, errno
}
