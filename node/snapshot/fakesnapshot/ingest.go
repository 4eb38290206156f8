package fakesnapshot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
)

// ingest is a layer that stands on nothing yet.
type ingest struct {
	store  *Store
	layer  tree
	gone   map[string]bool // whiteouts
	opaque map[string]bool
	said   map[string]bool // folders that the tar itself describes
	size   int64

	mu   sync.Mutex
	done bool
}

// Ingest reads a layer.
func (s *Store) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	if err := s.enter(ctx, "Ingest"); err != nil {
		return nil, err
	}
	in := &ingest{store: s, layer: emptyTree(), gone: map[string]bool{}, opaque: map[string]bool{}, said: map[string]bool{}}
	src := &remembering{r: layer}
	archive := tar.NewReader(src)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) && src.err == nil {
			break
		}
		if err == nil {
			err = in.entry(h, archive)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("unpack layer: %w", src.blame(err))
		}
	}
	if _, err := io.Copy(io.Discard, src); err != nil {
		return nil, fmt.Errorf("unpack layer: %w", src.blame(err))
	}
	return in, nil
}

type remembering struct {
	r   io.Reader
	err error
}

func (r *remembering) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func (r *remembering) blame(err error) error {
	if r.err != nil && !errors.Is(r.err, io.ErrUnexpectedEOF) {
		return r.err
	}
	return errs.New(errs.Invalid, "%w", err)
}

func inside(name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || len(clean) > 4095 {
		return "", errs.New(errs.Invalid, "%.100q is outside of the layer", name)
	}
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > 255 {
			return "", errs.New(errs.Invalid, "%.100q is too long a name", part)
		}
	}
	return clean, nil
}

func (in *ingest) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	dir, err := in.folder(path.Dir(name))
	if err != nil {
		return err
	}
	if name != "." {
		name = path.Join(dir, path.Base(name))
	}
	if base, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
		return in.whiteout(dir, base)
	}
	f, err := in.read(h, body)
	if err != nil || f == nil {
		return err
	}
	return in.put(name, f)
}

// folder makes the folder name, and those above, where the layer lacks it.
func (in *ingest) folder(name string) (string, error) {
	if name == "." {
		return name, nil
	}
	parent, err := in.folder(path.Dir(name))
	if err != nil {
		return "", err
	}
	name = path.Join(parent, path.Base(name))
	switch f := in.layer[name]; {
	case f == nil:
		in.layer[name] = &file{kind: tar.TypeDir, mode: 0o755, mtime: time.Unix(0, 0)}
	case f.kind == tar.TypeSymlink && !path.IsAbs(f.target):
		to := path.Join(parent, f.target)
		if g := in.layer[to]; g != nil && g.kind == tar.TypeDir {
			return to, nil
		}
		return "", errs.New(errs.Invalid, "path goes through the link %s", name)
	case f.kind != tar.TypeDir:
		return "", errs.New(errs.Invalid, "%s is not a folder", name)
	}
	return name, nil
}

func (in *ingest) whiteout(dir, base string) error {
	switch {
	case base == ".wh..opq":
		in.opaque[dir] = true
	case strings.HasPrefix(base, ".wh."):
	case base == "" || base == "." || base == "..":
		return errs.New(errs.Invalid, "whiteout of nothing")
	default:
		in.gone[path.Join(dir, base)] = true
	}
	return nil
}

func (in *ingest) read(h *tar.Header, body io.Reader) (f *file, err error) {
	f = &file{kind: h.Typeflag, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, mtime: h.ModTime}
	for record, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(record, paxXattr); ok {
			if f.xattrs == nil {
				f.xattrs = map[string]string{}
			}
			f.xattrs[name] = value
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		f.kind = tar.TypeReg
		f.body, err = io.ReadAll(body)
		in.size += int64(len(f.body))
		return f, err
	case tar.TypeDir, tar.TypeFifo:
		return f, nil
	case tar.TypeChar, tar.TypeBlock:
		f.major, f.minor = h.Devmajor, h.Devminor
		return f, nil
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return nil, errs.New(errs.Invalid, "link to nothing")
		}
		f.target, f.mode = h.Linkname, 0o777
		return f, nil
	case tar.TypeLink:
		target, err := inside(h.Linkname)
		if err != nil {
			return nil, err
		}
		other := in.layer[target]
		if other == nil || other.kind == tar.TypeDir {
			return nil, errs.New(errs.Invalid, "hard link to %s, which is no file of this layer", target)
		}
		return other, nil
	}
	return nil, errs.New(errs.Invalid, "unknown type %q", h.Typeflag)
}

// put places f; a later entry replaces an earlier one, but folders merge.
func (in *ingest) put(name string, f *file) error {
	old := in.layer[name]
	if f.kind == tar.TypeDir {
		in.said[name] = true
	} else {
		if name == "." {
			return errs.New(errs.Invalid, "the root is a folder")
		}
		if old != nil && old.kind == tar.TypeDir {
			in.layer = in.layer.without(name)
		}
		delete(in.said, name)
	}
	in.layer[name] = f
	return nil
}

// without is the tree less name and what is in it.
func (t tree) without(name string) tree {
	left := maps.Clone(t)
	maps.DeleteFunc(left, func(p string, _ *file) bool { return p == name || strings.HasPrefix(p, name+"/") })
	return left
}

// Size is the sum of the files' bytes.
func (in *ingest) Size() int64 { return in.size }

// Abort drops the layer.
func (in *ingest) Abort(context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.done = true
	return nil
}

// Commit lays the layer over what parent shows.
func (in *ingest) Commit(ctx context.Context, name, parent snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.done {
		return snapshot.Committed{}, errs.New(errs.Conflict, "the layer is committed or dropped already")
	}
	s := in.store
	if err := s.enter(ctx, "IngestCommit"); err != nil {
		return snapshot.Committed{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.make(snapshot.KindCommitted, name, parent, labels)
	if err != nil {
		in.done = errors.Is(err, errs.Exists)
		return snapshot.Committed{}, err
	}
	in.done = true
	h.tree = in.over(h.base)
	return snapshot.Committed{Info: h.info()}, nil
}

func (in *ingest) over(base tree) tree {
	merged := maps.Clone(base)
	for dir := range in.opaque {
		root := merged[dir]
		merged = merged.without(dir)
		if dir == "." {
			merged = tree{}
		}
		if root != nil {
			merged[dir] = root
		}
	}
	for name := range in.gone {
		merged = merged.without(name)
	}
	for _, name := range slices.Sorted(maps.Keys(in.layer)) {
		f, old := in.layer[name], merged[name]
		wasFolder := old != nil && old.kind == tar.TypeDir
		switch {
		case f.kind == tar.TypeDir && wasFolder && !in.said[name]:
			continue // only implied: it looks as below
		case f.kind != tar.TypeDir && wasFolder:
			merged = merged.without(name)
		}
		merged[name] = f
	}
	return merged
}
