package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	paxXattr       = "SCHILY.xattr."
)

// WriteTar writes the layer root as a tar: the same tree always gives the same
// bytes. Folders come before what is in them, names in their order; a file's
// further names are hard links to its first; whiteouts and opaque folders are
// spelled as layers do. Sockets are left out, and names that a layer would
// take for whiteouts.
//
// Bodies that are not in the tree come from open. One that is shorter than the
// tree says is an error if it is an object; else it is a file that somebody
// has cut short meanwhile, and is filled up with zeros.
func WriteTar(ctx context.Context, w io.Writer, root *Node, open func(path string, n *Node) (io.ReadCloser, error)) error {
	a := archive{w: tar.NewWriter(w), open: open, first: map[*Node]string{}}
	if root.Opaque {
		if err := a.marker(opaqueMarker, 0); err != nil {
			return fmt.Errorf("write layer: %w", err)
		}
	}
	if err := a.folder(ctx, "", root); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := a.w.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

type archive struct {
	w     *tar.Writer
	open  func(path string, n *Node) (io.ReadCloser, error)
	first map[*Node]string // the path under which a file was first written
	buf   []byte
}

func (a *archive) folder(ctx context.Context, prefix string, dir *Node) error {
	for _, e := range dir.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := prefix + e.Name
		switch {
		case e.Node.IsWhiteout():
			if err := a.marker(prefix+whiteoutPrefix+e.Name, e.Node.Sec); err != nil {
				return err
			}
			continue
		case strings.HasPrefix(e.Name, whiteoutPrefix):
			continue // cannot be said in a layer: it would delete something
		}
		if err := a.node(ctx, path, e.Node); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if e.Node.IsDir() {
			if err := a.folder(ctx, path+"/", e.Node); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *archive) marker(name string, sec int64) error {
	return a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, ModTime: time.Unix(sec, 0)})
}

func (a *archive) node(ctx context.Context, path string, n *Node) error {
	h := &tar.Header{
		Name: path, Format: tar.FormatPAX, Mode: int64(n.Mode & 0o7777),
		Uid: int(n.UID), Gid: int(n.GID), ModTime: time.Unix(n.Sec, int64(n.Nsec)),
	}
	switch n.Type() {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, n.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // a socket means nothing without its process
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(n.Rdev)), int64(unix.Minor(n.Rdev))
	}
	if !n.IsDir() {
		if first, linked := a.first[n]; linked {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return a.w.WriteHeader(h)
		}
		a.first[n] = path
	}
	return a.whole(ctx, path, n, h)
}

// whole writes what is no further name of something.
func (a *archive) whole(ctx context.Context, path string, n *Node, h *tar.Header) error {
	for _, x := range n.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+x.Name] = string(x.Value)
	}
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	switch {
	case n.IsDir() && n.Opaque:
		return a.marker(path+"/"+opaqueMarker, n.Sec)
	case n.IsRegular() && n.Size > 0:
		return a.body(ctx, path, n)
	}
	return nil
}

func (a *archive) body(ctx context.Context, path string, n *Node) error {
	if len(n.Body) > 0 {
		_, err := io.Copy(a.w, bytes.NewReader(n.Body))
		return err
	}
	r, err := a.open(path, n)
	if err != nil {
		return err
	}
	defer r.Close()
	if a.buf == nil {
		a.buf = make([]byte, 1<<18)
	}
	for left := n.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := a.buf[:min(left, int64(len(a.buf)))]
		got, err := io.ReadFull(r, p)
		switch {
		case err == nil:
		case err != io.EOF && err != io.ErrUnexpectedEOF:
			return fmt.Errorf("read: %w", err)
		case n.Object != Digest{}:
			return errs.New(errs.Internal, "object %x ends %d bytes early", n.Object, left-int64(got))
		default:
			clear(p[got:])
		}
		if _, err := a.w.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	return nil
}
