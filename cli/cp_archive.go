package cli

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"berth/base/errs"
)

// pack writes source as a tar in which it is called name, and counts the
// bytes of its files. A source that is a symbolic link is followed if follow
// is set. Unless keepIDs is set everything belongs to root.
func pack(w io.Writer, source, name string, follow, keepIDs bool) (int64, error) {
	out := tar.NewWriter(w)
	p := packing{out: out, keepIDs: keepIDs, linked: map[inode]string{}}
	root := source
	if follow {
		resolved, err := filepath.EvalSymlinks(source)
		if err != nil {
			return 0, err
		}
		root = resolved
	}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		return p.add(file, path.Join(name, filepath.ToSlash(below)), entry)
	})
	return p.copied, errors.Join(err, out.Close())
}

type packing struct {
	out     *tar.Writer
	keepIDs bool
	linked  map[inode]string // files with several names, by the first of them
	copied  int64
}

type inode struct{ device, number uint64 }

func (p *packing) add(file, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // a tar cannot hold one
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name = name
	if info.IsDir() {
		header.Name += "/"
	}
	header.Uname, header.Gname = "", ""
	if !p.keepIDs {
		header.Uid, header.Gid = 0, 0
	}
	p.link(header, info)
	if err := p.out.WriteHeader(header); err != nil {
		return err
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	return p.body(file, header.Size)
}

// link makes a further name of a file that is in the tar already a hard link.
func (p *packing) link(header *tar.Header, info fs.FileInfo) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || header.Typeflag != tar.TypeReg || stat.Nlink < 2 {
		return
	}
	id := inode{uint64(stat.Dev), stat.Ino} //nolint:unconvert // not 64 bits everywhere
	if first, found := p.linked[id]; found {
		header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
		return
	}
	p.linked[id] = header.Name
}

func (p *packing) body(file string, size int64) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(p.out, io.LimitReader(in, size)) // a file that grows meanwhile
	p.copied += n
	return err
}

// unpack makes target of the first thing in a tar, with all that is below it,
// and counts the bytes of files. Nothing is written outside of target's
// folder, whatever the names and links in the tar are.
func unpack(r io.Reader, target string, keepIDs bool) (int64, error) {
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return 0, errs.New(errs.Invalid, "%w", err)
	}
	defer root.Close()
	u := unpacking{root: root, name: filepath.Base(target), keepIDs: keepIDs}
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return u.copied, u.finish()
		}
		if err != nil {
			return u.copied, err
		}
		if err := u.entry(header, in); err != nil {
			return u.copied, errs.New(errs.Invalid, "%s: %w", header.Name, err)
		}
	}
}

type unpacking struct {
	root    *os.Root
	name    string // that the first thing gets
	top     string // that it has in the tar
	seen    bool
	keepIDs bool
	copied  int64
	folders []*tar.Header // whose modes and times are set last
}

// place is where an entry belongs, below u.root.
func (u *unpacking) place(name string) (string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if !u.seen {
		u.top, u.seen = clean, true
	}
	below, inside := strings.CutPrefix(clean, u.top)
	if !inside || u.top != "" && below != "" && below[0] != '/' {
		return "", errs.New(errs.Invalid, "is not below %q", u.top)
	}
	return path.Join(u.name, below), nil
}

func (u *unpacking) entry(header *tar.Header, body io.Reader) error {
	name, err := u.place(header.Name)
	if err != nil {
		return err
	}
	mode := header.FileInfo().Mode()
	switch header.Typeflag {
	case tar.TypeDir:
		header.Name = name
		u.folders = append(u.folders, header)
		if err := u.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		if err := u.file(name, body); err != nil {
			return err
		}
	case tar.TypeSymlink:
		return u.fresh(name, func() error { return u.root.Symlink(header.Linkname, name) })
	case tar.TypeLink:
		first, err := u.place(header.Linkname)
		if err != nil {
			return err
		}
		return u.fresh(name, func() error { return u.root.Link(first, name) })
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return nil // made by mknod only, and of no use outside the container
	default:
		return errs.New(errs.Unsupported, "unknown type %q of entry", header.Typeflag)
	}
	return u.attributes(name, header, mode)
}

// file writes a regular file in the place of whatever was there, which it does
// not write through.
func (u *unpacking) file(name string, body io.Reader) error {
	return u.fresh(name, func() error {
		out, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		n, err := io.Copy(out, body)
		u.copied += n
		return errors.Join(err, out.Close())
	})
}

// fresh makes a name anew; a folder is never replaced.
func (u *unpacking) fresh(name string, create func() error) error {
	info, err := u.root.Lstat(name)
	switch {
	case err == nil && info.IsDir():
		return errs.New(errs.Invalid, "there is a folder of that name")
	case err == nil:
		if err := u.root.Remove(name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return create()
}

func (u *unpacking) attributes(name string, header *tar.Header, mode fs.FileMode) error {
	if u.keepIDs {
		if err := u.root.Lchown(name, header.Uid, header.Gid); err != nil {
			return err
		}
	}
	if err := u.root.Chmod(name, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return u.root.Chtimes(name, header.ModTime, header.ModTime)
}

// finish sets what filling the folders would have changed.
func (u *unpacking) finish() error {
	for _, folder := range slices.Backward(u.folders) {
		if err := u.attributes(folder.Name, folder, folder.FileInfo().Mode()); err != nil {
			return err
		}
	}
	return nil
}
