package profile

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watcher hears of opens on one superblock.
type watcher struct {
	events *os.File
	device uint64
}

// look is how often a watcher looks whether the root is still mounted.
const look = 500 * time.Millisecond

// watch begins to hear of what is opened on the file system of root.
func watch(root string) (*watcher, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, os.NewSyscallError("fanotify_init", err)
	}
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN, unix.AT_FDCWD, root)
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fanotify_mark", err)
	}
	return &watcher{os.NewFile(uintptr(fd), "fanotify"), deviceOf(root)}, nil
}

// deviceOf is that of the file system on a path, 0 where there is no path.
func deviceOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Dev
}

// isUnsupported says that no container's start can be watched here.
func isUnsupported(err error) bool {
	for _, known := range []unix.Errno{unix.ENOSYS, unix.EPERM, unix.EINVAL, unix.EOPNOTSUPP} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// paths lists what is opened, each file once, as paths in the root, until the
// time is over, the root is unmounted or ctx is done.
func (w *watcher) paths(ctx context.Context, window time.Duration, root string) []string {
	defer w.events.Close()
	end := time.Now().Add(window)
	defer context.AfterFunc(ctx, func() { _ = w.events.SetReadDeadline(time.Unix(1, 0)) })() // where it is set anew, that is the last time
	var paths []string
	seen := map[string]bool{}
	buf := make([]byte, 64<<10)
	for len(paths) < pathsLimit && ctx.Err() == nil && time.Now().Before(end) {
		_ = w.events.SetReadDeadline(time.Now().Add(min(look, time.Until(end))))
		n, err := w.events.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && deviceOf(root) == w.device {
			continue
		}
		if err != nil {
			break
		}
		eachEvent(buf[:n], func(fd int) {
			path := within(root, pathOf(fd))
			_ = unix.Close(fd)
			if path != "" && !seen[path] {
				seen[path] = true
				paths = append(paths, path)
			}
		})
	}
	return paths
}

const eventLen = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

// eachEvent calls fn with the descriptors of the files that events are about.
func eachEvent(b []byte, fn func(fd int)) {
	for len(b) >= eventLen {
		length := int(binary.NativeEndian.Uint32(b))
		if length < eventLen || length > len(b) {
			return
		}
		event := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&b[0]))
		if event.Vers == unix.FANOTIFY_METADATA_VERSION && event.Fd >= 0 { // else the queue ran over, or it could not be opened
			fn(int(event.Fd))
		}
		b = b[length:]
	}
}

func pathOf(fd int) string {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil || strings.HasSuffix(path, " (deleted)") {
		return ""
	}
	return path
}

// within makes a path relative to the root. Files that were opened before the
// runtime changed its root have the root's own path before theirs; those opened
// after have not.
func within(root, path string) string {
	if rest, ok := strings.CutPrefix(path, root+"/"); ok {
		return rest
	}
	return strings.TrimPrefix(path, "/")
}
