package lazy

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/snapshot"
)

// forever is how long the kernel may believe what it was told: a digest says
// all that there is to a body.
const forever = time.Hour

// serveFiles begins to answer the requests of device, which it owns from now
// on. The server ends when nobody has the mount any more.
func serveFiles(device int, b *bodies, to *slog.Logger) (*fuse.Server, error) {
	timeout := forever
	options := &fs.Options{
		EntryTimeout: &timeout, AttrTimeout: &timeout, RootStableAttr: &fs.StableAttr{Ino: 1},
		MountOptions: fuse.MountOptions{Name: "berth-lazy", Logger: slog.NewLogLogger(to.Handler(), slog.LevelDebug), MaxBackground: 64},
	}
	return fuse.NewServer(fs.NewNodeFS(&root{bodies: b}, options), "/dev/fd/"+strconv.Itoa(device), &options.MountOptions)
}

// root holds folders for all first bytes of digests.
type root struct {
	fs.Inode
	bodies *bodies
}

// Lookup finds the folder of digests that begin with name.
func (r *root) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	first, ok := unhex(name, 1)
	if !ok {
		return nil, syscall.ENOENT
	}
	out.Mode = syscall.S_IFDIR | 0o555
	s := &shard{bodies: r.bodies, first: first[0]}
	return r.NewInode(ctx, s, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: 2 + uint64(first[0])}), 0
}

// shard holds the missing bodies whose digests begin with a byte.
type shard struct {
	fs.Inode
	bodies *bodies
	first  byte
}

// Lookup finds a body that is missing, or has come meanwhile.
func (s *shard) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	rest, ok := unhex(name, len(tree.Digest{})-1)
	if !ok {
		return nil, syscall.ENOENT
	}
	d := tree.Digest(append([]byte{s.first}, rest...))
	size, err := s.bodies.size(ctx, d)
	if err != nil {
		return nil, errno(err)
	}
	n := &body{bodies: s.bodies, digest: d, size: size}
	n.attributes(&out.Attr)
	return s.NewInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFREG, Ino: binary.LittleEndian.Uint64(d[:]), Gen: binary.LittleEndian.Uint64(d[8:])}), 0
}

func unhex(name string, n int) ([]byte, bool) {
	if len(name) != 2*n {
		return nil, false
	}
	b, err := hex.DecodeString(name)
	return b, err == nil && hex.EncodeToString(b) == name // lower case only
}

// body is a file that is, or was, missing.
type body struct {
	fs.Inode
	bodies *bodies
	digest tree.Digest
	size   int64
}

func (n *body) attributes(a *fuse.Attr) {
	a.Mode, a.Size, a.Blocks, a.Nlink = syscall.S_IFREG|0o444, uint64(n.size), uint64(n.size+511)/512, 1
}

// Getattr answers what Lookup said.
func (n *body) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attributes(&out.Attr)
	return 0
}

// Open waits until the body is here.
func (n *body) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	ctx, cancel := untilKilled(ctx)
	defer cancel()
	file, err := n.bodies.open(ctx, n.digest)
	if err != nil {
		return nil, 0, errno(err)
	}
	return &handle{file}, fuse.FOPEN_KEEP_CACHE, 0
}

// handle is an opened body. The kernel reads it directly where it can.
type handle struct{ file *os.File }

// PassthroughFd gives the kernel the body's own file.
func (h *handle) PassthroughFd() (int, bool) { return int(h.file.Fd()), true }

// Read is for kernels that do not pass reads through.
func (h *handle) Read(_ context.Context, dest []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultFd(h.file.Fd(), offset, len(dest)), 0
}

// Release closes the body.
func (h *handle) Release(context.Context) syscall.Errno {
	_ = h.file.Close()
	return 0
}

// untilKilled ends when the caller is killed. Any other signal must not end an
// open: few programs expect that of a file.
func untilKilled(ctx context.Context) (context.Context, context.CancelFunc) {
	waiting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(ctx, func() { // the kernel tells of the first signal only
		for !killed(caller.Pid) {
			if !snapshot.Rest(waiting, 100*time.Millisecond) {
				return
			}
		}
		cancel()
	})
	return waiting, func() { stop(); cancel() }
}

// killed says whether a thread is gone or has SIGKILL before it.
func killed(tid uint32) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && pending&(1<<(uint(syscall.SIGKILL)-1)) != 0 {
			return true
		}
	}
	return false
}

func errno(err error) syscall.Errno {
	switch {
	case errors.Is(err, errs.NotFound):
		return syscall.ENOENT
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	}
	return syscall.EIO
}

// openBody opens a body in the folder of objects.
func openBody(folder int, d tree.Digest) (*os.File, error) {
	name := hex.EncodeToString(d[:1]) + "/" + hex.EncodeToString(d[1:])
	fd, err := unix.Openat(folder, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, errs.New(errs.NotFound, "no body %x", d)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
