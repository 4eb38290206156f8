package lcfs

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openDisks opens a folder on each file system that parts of the store lie
// on, beside that of the objects: somebody may have mounted one on meta/.
func (s *Store) openDisks() error {
	met := map[uint64]bool{}
	for _, name := range []string{"objects", "layers", "meta", "recipes"} {
		fd, err := openFolder(filepath.Join(s.dir, name))
		if err != nil {
			return err
		}
		s.disks = append(s.disks, fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if met[st.Dev] || name == "objects" {
			s.disks = s.disks[:len(s.disks)-1]
			_ = unix.Close(fd)
		}
		met[st.Dev] = true
	}
	return nil
}
