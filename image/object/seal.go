package object

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/base/errs"
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

// SealFrom is the size from which on a body is sealed. The sums that the kernel
// checks by take a block and more of the disk, which is much beside a small file.
const SealFrom = 64 << 10

// Seal has the kernel check the body d whenever it is read (fs-verity), and
// says whether that can be: not every file system can. Bodies that are small or
// have holes are left as they are. A sealed body can be replaced and deleted,
// but no longer written.
func (s *Store) Seal(ctx context.Context, d tree.Digest) (bool, error) {
	if err := ctx.Err(); err != nil || s.noVerity.Load() {
		return false, err
	}
	f, err := s.Open(d)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, fmt.Errorf("seal object %x: %w", d, err)
	}
	if st.Size < SealFrom || st.Blocks*512 < st.Size {
		return true, nil
	}
	sealed, err := SealFile(f)
	if err != nil {
		return false, fmt.Errorf("seal object %x: %w", d, errs.Full(err))
	}
	if !sealed {
		s.noVerity.Store(true)
	}
	return sealed, nil
}

// SealFile is Seal for a file that is no object, whatever its size. It must not
// be open for writing. Somebody else who is at it does it for us.
func SealFile(f *os.File) (bool, error) {
	arg := verityArg{version: 1, algorithm: 1 /* sha256 */, blockSize: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), enableVerity, uintptr(unsafe.Pointer(&arg)))
	switch errno {
	case 0, unix.EEXIST, unix.EBUSY:
		return true, nil
	case unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS:
		return false, nil
	}
	return false, errno
}
