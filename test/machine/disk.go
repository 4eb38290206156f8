package machine

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Fill takes all but so many bytes of the disk that a folder is on, until free
// is called.
func Fill(t testing.TB, dir string, leave int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	Must(t, err)
	defer f.Close()
	var fs unix.Statfs_t
	size := int64(0)
	for piece := int64(16 << 20); piece >= 4096; {
		Must(t, unix.Statfs(dir, &fs))
		if int64(fs.Bavail)*fs.Bsize-leave < piece || unix.Fallocate(int(f.Fd()), 0, size, piece) != nil {
			piece /= 2
			continue
		}
		size += piece
	}
	return func() { Must(t, os.Remove(path)) }
}
