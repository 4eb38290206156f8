package folder

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WriteTar writes the folder dirfd as a tar layer. The same folder always
// gives the same bytes: entries lie in the order of names, a folder before
// what is in it; times are whole nanoseconds in PAX records; markers of what
// is deleted are of the year 1970, for who unpacks them keeps no time either.
// Sockets are left out, as are names that would be taken for a marker.
// opaque says that the layer's root hides all that is below.
func WriteTar(ctx context.Context, w io.Writer, dirfd int, opaque bool) error {
	d := NewTarWriter(w)
	if opaque {
		if err := d.Opaque("."); err != nil {
			return err
		}
	}
	if err := Walk(ctx, dirfd, func(e *Entry) error { return d.add(ctx, e) }); err != nil {
		return err
	}
	return d.Close()
}

// TarWriter writes entries as WriteTar does, where not all of a folder is
// wanted.
type TarWriter struct {
	w     *tar.Writer
	first map[uint64]string // inode to the path it was first written under
	buf   []byte
}

// NewTarWriter begins a layer. Close ends it.
func NewTarWriter(w io.Writer) *TarWriter {
	return &TarWriter{w: tar.NewWriter(w), first: map[uint64]string{}, buf: make([]byte, 1<<18)}
}

// Close writes the end of the archive.
func (d *TarWriter) Close() error { return d.w.Close() }

// Opaque says that the folder at path hides what is below.
func (d *TarWriter) Opaque(path string) error { return d.marker(join(path, opaqueMarker)) }

// Deleted says that there is nothing at path any more.
func (d *TarWriter) Deleted(path string) error {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i+1], path[i+1:]
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return nil // nor could its being there be said
	}
	return d.marker(dir + whiteoutPrefix + name)
}

func (d *TarWriter) marker(name string) error {
	return d.w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, ModTime: time.Unix(0, 0),
	})
}

// add writes e, be it a whiteout or opaque.
func (d *TarWriter) add(ctx context.Context, e *Entry) error {
	if e.IsWhiteout() {
		return d.Deleted(e.Path)
	}
	if err := d.Add(ctx, e); err != nil {
		return err
	}
	if e.IsOpaque() {
		return d.Opaque(e.Path)
	}
	return nil
}

// Add writes e itself. It returns ErrSkip for a folder that cannot be said in
// a layer, nor what is in it.
func (d *TarWriter) Add(ctx context.Context, e *Entry) error {
	if strings.HasPrefix(e.Name, whiteoutPrefix) {
		return skipped(e) // it would delete something
	}
	h := &tar.Header{
		Name: e.Path, Format: tar.FormatPAX, Mode: int64(e.Stat.Mode & 0o7777),
		Uid: int(e.Stat.Uid), Gid: int(e.Stat.Gid), ModTime: time.Unix(e.Stat.Mtim.Unix()),
	}
	switch e.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return d.file(ctx, e, h)
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		target, err := e.Target()
		if err != nil {
			return err
		}
		h.Linkname = target
	case unix.S_IFCHR, unix.S_IFBLK:
		if e.IsWhiteout() {
			return nil // in a layer it would delete something
		}
		h.Typeflag = tar.TypeChar
		if e.Stat.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(e.Stat.Rdev)), int64(unix.Minor(e.Stat.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // a socket means nothing without its process
	}
	if linked, err := d.link(e, h); linked || err != nil {
		return err
	}
	if err := addXattrs(e, h); err != nil {
		return err
	}
	return d.w.WriteHeader(h)
}

func skipped(e *Entry) error {
	if e.IsDir() {
		return ErrSkip
	}
	return nil
}

func addXattrs(e *Entry, h *tar.Header) error {
	xattrs, err := e.Xattrs()
	for _, x := range xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+x.Name] = string(x.Value)
	}
	return err
}

// link writes a further name of a file that is written already.
func (d *TarWriter) link(e *Entry, h *tar.Header) (bool, error) {
	if e.Stat.Nlink < 2 || e.IsDir() {
		return false, nil
	}
	first, ok := d.first[e.Stat.Ino]
	if !ok {
		d.first[e.Stat.Ino] = e.Path
		return false, nil
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return true, d.w.WriteHeader(h)
}

func (d *TarWriter) file(ctx context.Context, e *Entry, h *tar.Header) error {
	h.Typeflag, h.Size = tar.TypeReg, e.Stat.Size
	if linked, err := d.link(e, h); linked || err != nil {
		return err
	}
	f, err := e.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := addXattrs(e, h); err != nil {
		return err
	}
	if err := d.w.WriteHeader(h); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := d.buf[:min(left, int64(len(d.buf)))]
		n, err := io.ReadFull(f, p)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			clear(p[n:]) // somebody cut it short: the header's promise is kept
		} else if err != nil {
			return fmt.Errorf("read %s: %w", e.Path, err)
		}
		if _, err := d.w.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	return nil
}
