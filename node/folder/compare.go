package folder

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// Compare says how the whole tree own differs from the whole tree base, in the
// order in which a layer has it. A folder in which something changed has
// changed itself; of what was deleted only the topmost is listed.
//
// Files are compared byte by byte where neither their looks differ nor cloned
// says that they are as they were cloned. The zero Cloned knows of none.
func Compare(ctx context.Context, own, base int, cloned Cloned) ([]spec.Change, error) {
	d := difference{
		ctx: ctx, cloned: cloned, kinds: map[string]string{},
		touched: map[uint64]bool{}, links: map[uint64][]string{},
	}
	if _, err := d.folders(own, base, ".", 0); err != nil {
		return nil, fmt.Errorf("compare trees: %w", err)
	}
	d.followLinks()
	changes := make([]spec.Change, 0, len(d.kinds))
	for name, kind := range d.kinds {
		changes = append(changes, spec.Change{Kind: kind, Path: "/" + name})
	}
	slices.SortFunc(changes, func(a, b spec.Change) int { return inLayerOrder(a.Path, b.Path) })
	return changes, nil
}

// inLayerOrder puts a folder before what is in it, and that before what is
// beside the folder.
func inLayerOrder(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

type difference struct {
	ctx    context.Context //nolint:containedctx // lives as long as Compare
	cloned Cloned
	kinds  map[string]string // by path
	// touched are the inodes of own that are new or changed, links the paths of
	// those that are neither, as far as they have several names.
	touched map[uint64]bool
	links   map[uint64][]string
	a, b    []byte
}

// folders compares two folders and says whether something in them differs.
func (d *difference) folders(own, base int, dir string, depth int) (differs bool, err error) {
	if depth > maxDepth {
		return false, errs.New(errs.Unsupported, "folders are nested more than %d deep", maxDepth)
	}
	var st unix.Stat_t
	if err := unix.Fstat(own, &st); err != nil {
		return false, fmt.Errorf("stat folder %s: %w", dir, err)
	}
	unmoved := d.cloned.Folders[dir] == st.Ino
	names, err := Names(own)
	if err != nil {
		return false, fmt.Errorf("read folder %s: %w", dir, err)
	}
	old, err := Names(base)
	if err != nil {
		return false, fmt.Errorf("read folder %s: %w", dir, err)
	}
	for _, name := range old {
		if _, kept := slices.BinarySearch(names, name); !kept {
			d.kinds[join(dir, name)] = "D"
			differs = true
		}
	}
	for _, name := range names {
		if err := d.ctx.Err(); err != nil {
			return false, err
		}
		now, err := lookAt(own, dir, name, true)
		if err != nil {
			return false, err
		}
		if now == nil {
			continue
		}
		var before *Entry
		if _, had := slices.BinarySearch(old, name); had {
			if before, err = lookAt(base, dir, name, true); err != nil {
				return false, err
			}
		}
		changed, err := d.entry(now, before, unmoved, depth)
		if err != nil {
			return false, err
		}
		differs = differs || changed
	}
	return differs, nil
}

func (d *difference) entry(now, before *Entry, unmoved bool, depth int) (differs bool, err error) {
	switch {
	case before == nil:
		return true, d.added(now, "A", depth)
	case now.Stat.Mode&unix.S_IFMT != before.Stat.Mode&unix.S_IFMT:
		return true, d.added(now, "C", depth)
	}
	if !d.intact(now, before, unmoved) {
		if differs, err = d.differ(now, before); err != nil {
			return false, err
		}
	}
	if now.IsDir() {
		err := now.Descend(func(own int) error {
			return before.Descend(func(base int) error {
				inside, err := d.folders(own, base, now.Path, depth+1)
				differs = differs || inside
				return err
			})
		})
		if err != nil {
			return false, err
		}
	}
	if differs {
		d.kinds[now.Path] = "C"
	}
	d.note(now, differs)
	return differs, nil
}

// intact says whether a file is for certain as its clone was. unmoved says
// that the folder it is in is at its place since it was cloned: a file that is
// moved has its ctime changed, but not one in a folder that is moved.
func (d *difference) intact(now, before *Entry, unmoved bool) bool {
	a, b := &now.Stat, &before.Stat
	if a.Ino == b.Ino && a.Ctim == b.Ctim && a.Mtim == b.Mtim && a.Size == b.Size {
		return true // of a snapshot by the file system
	}
	changed := a.Ctim.Nano()
	return unmoved && d.cloned.From <= changed && changed < d.cloned.To
}

// added notes what is new, with all that is in it.
func (d *difference) added(e *Entry, kind string, depth int) error {
	d.kinds[e.Path] = kind
	d.note(e, true)
	if !e.IsDir() {
		return nil
	}
	return e.Descend(func(fd int) error {
		return walk(d.ctx, fd, e.Path, depth+1, true, func(e *Entry) error {
			d.kinds[e.Path] = "A"
			d.note(e, true)
			return nil
		})
	})
}

func (d *difference) note(e *Entry, differs bool) {
	switch {
	case e.Stat.Nlink < 2 || e.IsDir():
	case differs:
		d.touched[e.Stat.Ino] = true
	default:
		d.links[e.Stat.Ino] = append(d.links[e.Stat.Ino], e.Path)
	}
}

// followLinks adds the other names of inodes that are new or changed: a layer
// can say that two names are one file only if it has both.
func (d *difference) followLinks() {
	for ino := range d.touched {
		for _, name := range d.links[ino] {
			for ; name != "." && d.kinds[name] == ""; name = path.Dir(name) {
				d.kinds[name] = "C"
			}
		}
	}
}

// differ compares two entries of one type, in what is not in them if they are
// folders.
func (d *difference) differ(now, before *Entry) (bool, error) {
	a, b := &now.Stat, &before.Stat
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim || a.Rdev != b.Rdev {
		return true, nil
	}
	if a.Ino == b.Ino && a.Dev == b.Dev {
		return false, nil
	}
	was, err := before.Xattrs()
	if err != nil {
		return false, err
	}
	is, err := now.Xattrs()
	if err != nil {
		return false, err
	}
	if !slices.EqualFunc(is, was, func(a, b Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }) {
		return true, nil
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if a.Size != b.Size {
			return true, nil
		}
		return d.bodiesDiffer(now, before)
	case unix.S_IFLNK:
		x, err := now.Target()
		if err != nil {
			return false, err
		}
		y, err := before.Target()
		return x != y, err
	}
	return false, nil
}

func (d *difference) bodiesDiffer(now, before *Entry) (bool, error) {
	if d.a == nil {
		d.a, d.b = make([]byte, 1<<18), make([]byte, 1<<18)
	}
	x, err := now.Open()
	if err != nil {
		return false, err
	}
	defer x.Close()
	y, err := before.Open()
	if err != nil {
		return false, err
	}
	defer y.Close()
	for {
		if err := d.ctx.Err(); err != nil {
			return false, err
		}
		n, errX := io.ReadFull(x, d.a)
		m, errY := io.ReadFull(y, d.b)
		if !bytes.Equal(d.a[:n], d.b[:m]) {
			return true, nil
		}
		for _, err := range []error{errX, errY} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF { //nolint:errorlint // io.ReadFull returns these themselves
				return false, err
			}
		}
		if errX != nil || errY != nil {
			return false, nil
		}
	}
}

// WriteChanges writes what Compare found in the whole tree own as a tar layer,
// by the rules of WriteTar.
func WriteChanges(ctx context.Context, w io.Writer, own int, changes []spec.Change) error {
	t := NewTarWriter(w)
	err := eachChange(ctx, own, changes, func(c spec.Change, e *Entry) error {
		if e == nil {
			return t.Deleted(c.Path[1:])
		}
		return t.Add(ctx, e)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// CountChanges adds up what Compare found to be new or changed in the whole
// tree own, and its root.
func CountChanges(ctx context.Context, own int, changes []spec.Change) (Usage, error) {
	usage := Usage{Inodes: 1, Size: 4096}
	seen := map[uint64]bool{}
	err := eachChange(ctx, own, changes, func(_ spec.Change, e *Entry) error {
		if e == nil || seen[e.Stat.Ino] {
			return nil
		}
		seen[e.Stat.Ino] = true
		usage.Inodes++
		usage.Size += e.Stat.Blocks * 512
		return nil
	})
	return usage, err
}

// eachChange calls fn with the entry of each change, nil where it is deleted.
// What fn asks to skip is skipped.
func eachChange(ctx context.Context, own int, changes []spec.Change, fn func(spec.Change, *Entry) error) error {
	at := newCursor(own)
	defer at.close()
	skipped := ""
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := c.Path[1:]
		if skipped != "" && len(name) > len(skipped) && name[:len(skipped)+1] == skipped+"/" {
			continue
		}
		var e *Entry
		if c.Kind != "D" {
			dirfd, err := at.within(name)
			if err == nil {
				e, err = lookAt(dirfd, path.Dir(name), path.Base(name), true)
			}
			if err != nil && !errs.IsAny(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP) {
				return err
			}
			if e == nil {
				continue // gone since
			}
		}
		err := fn(c, e)
		if err == ErrSkip { //nolint:errorlint // returned bare
			skipped, err = name, nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
