package folder

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Variant names a regular file of a layer by all that its inode carries but
// the body: size, owner, mode and time; and by its path, so that no tree shows
// one inode under two names that its author did not link: within a container
// cp and mv would refuse them as the same file. Files with xattrs have no
// variant; they are few.
type Variant [sha256.Size]byte

// Links is where regular files of layers are kept once more, so that what is
// equal in several layers is one inode, and lies on the disk and in the page
// cache once.
type Links interface {
	// Open opens the file that is kept as v; nil where there is none.
	Open(v Variant) *os.File
}

// File is a regular file of a layer that may be kept.
type File struct {
	Path    string
	Variant Variant
}

func variantOf(path string, h *tar.Header) Variant {
	key := make([]byte, 0, 128)
	key = binary.AppendUvarint(key, uint64(len(path)))
	key = append(key, path...)
	for _, n := range []int64{
		h.Size, h.Mode & 0o7777, int64(h.Uid), int64(h.Gid), h.ModTime.Unix(), int64(h.ModTime.Nanosecond()),
	} {
		key = binary.AppendVarint(key, n)
	}
	return sha256.Sum256(key)
}

// sharing decides for one file of the tar whether it takes an inode of its own.
type sharing struct {
	u       *unpacker
	path    string
	variant Variant
	shared  bool     // it has a variant
	known   *os.File // what is kept under it
}

// share looks for a file that may be the one to come. Empty files are never
// shared: they take no space, and there are more of them than an inode can
// have names.
func (u *unpacker) share(path string, h *tar.Header) sharing {
	s := sharing{u: u, path: path, shared: u.links != nil && h.Size > 0 && !hasXattrs(h)}
	if !s.shared {
		return s
	}
	s.variant = variantOf(path, h)
	if f := u.links.Open(s.variant); f != nil {
		if looksAs(f, h) {
			s.known = f
		} else {
			_ = f.Close()
		}
	}
	return s
}

func hasXattrs(h *tar.Header) bool {
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, paxXattr) {
			return true
		}
	}
	return false
}

// looksAs checks what the variant says: a loss of power may have left anything
// under that name.
func looksAs(f *os.File, h *tar.Header) bool {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return st.Mode == unix.S_IFREG|uint32(h.Mode)&0o7777 && st.Size == h.Size &&
		int(st.Uid) == h.Uid && int(st.Gid) == h.Gid &&
		st.Mtim.Sec == h.ModTime.Unix() && int(st.Mtim.Nsec) == h.ModTime.Nanosecond()
}

func (s *sharing) close() {
	if s.known != nil {
		_ = s.known.Close()
	}
}

// holds says whether the known file has p at offset.
func (s *sharing) holds(p []byte, offset int64) bool {
	if s.known == nil {
		return false
	}
	if len(s.u.other) == 0 {
		s.u.other = make([]byte, len(s.u.buf))
	}
	other := s.u.other[:len(p)]
	n, err := s.known.ReadAt(other, offset)
	return n == len(p) && err == nil && bytes.Equal(p, other)
}

// copyTo writes the first n bytes of the known file.
func (s *sharing) copyTo(fd int, n int64) error {
	for offset := int64(0); offset < n; {
		p := s.u.other[:min(int64(len(s.u.other)), n-offset)]
		if _, err := s.known.ReadAt(p, offset); err != nil {
			return fmt.Errorf("read what is known: %w", err)
		}
		if err := writeSparse(fd, p, offset, -1); err != nil {
			return err
		}
		offset += int64(len(p))
	}
	return nil
}

// link makes base another name of the known file, all of which was compared.
// It may have lost its last name meanwhile, or have as many as it can.
func (s *sharing) link(dir *folder, base string) bool {
	err := s.u.make(dir, base, func() error {
		return unix.Linkat(int(s.known.Fd()), "", dir.fd, base, unix.AT_EMPTY_PATH)
	})
	if err != nil {
		return false
	}
	s.u.linked = append(s.u.linked, s.variant)
	return true
}

// written notes a file that others may be links to.
func (s *sharing) written() {
	if s.shared && s.known == nil {
		s.u.fresh[s.path] = s.variant
	}
}

// Keep calls link for each of the files in the folder root, with a descriptor
// of the folder that the file is in and its name there, until it fails.
func Keep(ctx context.Context, root int, files []File, link func(v Variant, dirfd int, base string) error) error {
	dir, dirfd := ".", root
	leave := func() {
		if dirfd != root {
			_ = unix.Close(dirfd)
		}
	}
	defer func() { leave() }()
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d := path.Dir(f.Path); d != dir {
			leave()
			var err error
			dir, dirfd = ".", root
			if d != "." {
				if dirfd, err = openBeneath(root, d); err != nil {
					dirfd = root
					return fmt.Errorf("open folder %s: %w", brief(d), err)
				}
				dir = d
			}
		}
		if err := link(f.Variant, dirfd, path.Base(f.Path)); err != nil {
			return err
		}
	}
	return nil
}
