package object

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// Watched says that others look into the folder for bodies that are to come.
// From now on a body appears under its name only when it is whole, which
// costs a renaming.
func (s *Store) Watched(on bool) { s.watched.Store(on) }

// writeAside is write for a folder that is watched.
func (s *Store) writeAside(sh *shard, d tree.Digest, write func(dir int, name string) error) error {
	aside, file := "tmp-"+strconv.FormatUint(s.temporary.Add(1), 36), name(d)
	if err := write(s.fd, aside); err != nil {
		_ = unix.Unlinkat(s.fd, aside, 0)
		return err
	}
	err := s.place(aside, sh.dir, file)
	if errors.Is(err, unix.EEXIST) {
		if err = s.check(sh.dir, d); err == nil {
			return unix.Unlinkat(s.fd, aside, 0)
		}
		if isDamage(err) {
			err = unix.Unlinkat(sh.dir, file, 0)
		}
		if err == nil {
			err = s.place(aside, sh.dir, file)
		}
	}
	if err != nil {
		_ = unix.Unlinkat(s.fd, aside, 0)
	}
	return err
}
