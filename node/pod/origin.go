package pod

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
	"berth/node/snapshot"
)

// origin is the checkpoint that a container goes on from; nil for none.
type origin struct {
	dir   string // its parts, until the container has gone on
	about dumped
	oci   specs.Spec
	// exact: the request says what process there was, so that what differs is
	// an error. Else the process is what the checkpoint says.
	exact bool
}

// partsDir is where the parts of the checkpoint are that a container will go on
// from.
func (s *Set) partsDir(m *member) string { return filepath.Join(s.Restored, m.id) }

func (s *Set) dropParts(m *member) error {
	if s.Restored == "" {
		return nil
	}
	return os.RemoveAll(s.partsDir(m))
}

// sweepParts removes what was for containers that there are not.
func (s *Set) sweepParts(ctx context.Context) error {
	entries, err := os.ReadDir(s.Restored)
	if errors.Is(err, fs.ErrNotExist) || s.Restored == "" {
		return nil
	}
	for _, e := range entries {
		if !s.Claims(e.Name()) {
			s.swept(ctx, "checkpoint", e.Name())
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.Restored, e.Name())))
		}
	}
	return err
}

// take gets the parts of a checkpoint from a folder, an archive, or the layers
// of an image: whoever has it may take it away before the container is started.
func (s *Set) take(ctx context.Context, m *member, source string, image Image) (*origin, error) {
	dir := s.partsDir(m)
	if err := os.MkdirAll(filepath.Join(dir, processesPart), 0o700); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	var err error
	if source == "" {
		source = image.Name
		err = s.copyImage(ctx, m, image, dir)
	} else if info, failed := os.Stat(source); failed != nil {
		return nil, errs.New(errs.NotFound, "checkpoint: %w", failed)
	} else if info.IsDir() {
		err = copyParts(ctx, source, dir)
	} else {
		err = unpackParts(ctx, source, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", source, err)
	}
	o := &origin{dir: dir}
	if err := errors.Join(readPart(dir, configPart, &o.about), readPart(dir, specPart, &o.oci)); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, processesPart, "inventory.img")); err != nil || o.oci.Process == nil || o.oci.Linux == nil || o.oci.Root == nil {
		return nil, errs.New(errs.Invalid, "checkpoint %s: it is none of a container's processes", source)
	}
	return o, nil
}

func readPart(dir, name string, part any) error {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Invalid, "it is no checkpoint: it has no %s", name)
	}
	if err == nil && json.Unmarshal(data, part) != nil {
		return errs.New(errs.Invalid, "it is no checkpoint: its %s makes no sense", name)
	}
	return err
}

// copyImage copies the parts that an image holds.
func (s *Set) copyImage(ctx context.Context, m *member, image Image, dir string) (err error) {
	pod := m.pod.get()
	key, at := snapshot.Key(m.id+".checkpoint"), filepath.Join(dir, "image")
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	if _, err := s.Snapshots.View(ctx, key, image.Layers, rootLabels(&pod, m.id)); err != nil {
		return err
	}
	if err = s.Snapshots.Mount(ctx, key, at); err == nil {
		err = errors.Join(copyParts(ctx, at, dir), s.Snapshots.Unmount(ctx, at))
	}
	return errors.Join(err, s.Snapshots.Remove(ctx, key))
}

// wantedPart says whether a name is that of a part, and of what a restore needs.
func wantedPart(name string) bool {
	return slices.Contains([]string{configPart, specPart, changesPart, deletedPart, shmPart}, name) ||
		filepath.Dir(name) == processesPart && filepath.IsLocal(name)
}

// copyParts copies parts that lie in a folder, and follows no link out of it.
func copyParts(ctx context.Context, from, dir string) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.IsDir() && name != "." && name != processesPart:
			return fs.SkipDir
		case !wantedPart(name) || !e.Type().IsRegular():
			return nil
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return addPart(dir, name, f)
	})
}

// maxParts bounds what an archive unpacks to.
const maxParts = 64 << 30

// unpackParts unpacks an archive of parts.
func unpackParts(ctx context.Context, from, dir string) error {
	f, err := os.Open(from) //nolint:gosec // a client's, who is root
	if err != nil {
		return err
	}
	defer f.Close()
	left := int64(maxParts)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errs.New(errs.Invalid, "it is no archive of a checkpoint: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		name := filepath.Clean(h.Name)
		if !wantedPart(name) || h.Typeflag != tar.TypeReg {
			continue
		}
		if left -= h.Size; left < 0 {
			return errs.New(errs.Invalid, "it unpacks to more than %d bytes", int64(maxParts))
		}
		if err := addPart(dir, name, r); err != nil {
			return err
		}
	}
}

func addPart(dir, name string, r io.Reader) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // a name that wantedPart knows
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// lay brings a root file system to what it was.
func (o *origin) lay(ctx context.Context, root string) error {
	if err := errors.Join(o.delete(root), layPart(ctx, filepath.Join(o.dir, changesPart), root, o.dir)); err != nil {
		return fmt.Errorf("what the checkpoint has changed of its image: %w", err)
	}
	return nil
}

// layShm brings the pod's /dev/shm to what it was, by way of a folder of ours.
func (s *Set) layShm(ctx context.Context, p *pod, from, scratch string) error {
	shm := s.shmOf(p)
	if shm == "" {
		return nil
	}
	if err := layPart(ctx, filepath.Join(from, shmPart), shm, scratch); err != nil {
		return fmt.Errorf("what the checkpoint has in /dev/shm: %w", err)
	}
	return nil
}

// delete takes away what deletedPart names; ours says it in changesPart.
func (o *origin) delete(root string) error {
	var names []string
	if _, err := os.Stat(filepath.Join(o.dir, deletedPart)); err != nil {
		return nil //nolint:nilerr // there is none
	}
	if err := readPart(o.dir, deletedPart, &names); err != nil {
		return err
	}
	at, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer at.Close()
	for _, name := range names {
		err = errors.Join(err, at.RemoveAll(strings.TrimLeft(name, "/")))
	}
	return err
}

// layPart lays a layer, if it is there, on the tree root, by way of a folder in
// scratch.
func layPart(ctx context.Context, part, root, scratch string) error {
	changes, err := os.Open(part) //nolint:gosec // a client's, who is root
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer changes.Close()
	umask, err := folder.Umask()
	if err != nil {
		return err
	}
	at := filepath.Join(scratch, "layer")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(at)
	layer, err := openFolder(at)
	if err != nil {
		return err
	}
	defer unix.Close(layer)
	to, err := openFolder(root)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	unpacked, err := folder.Unpack(ctx, layer, changes, folder.Unpacking{Umask: umask, Limit: maxParts})
	if err != nil {
		return err
	}
	if err := look(at, root, unpacked.Implied); err != nil {
		return err
	}
	return folder.Apply(ctx, layer, to, unpacked.Opaque, folder.Copy)
}

// look has folders look as those of the same names elsewhere, where there are
// any.
func look(dir, as string, names []string) error {
	in, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer in.Close()
	from, err := os.OpenRoot(as)
	if err != nil {
		return err
	}
	defer from.Close()
	for _, name := range names {
		info, err := from.Lstat(name)
		if err != nil || !info.IsDir() {
			continue
		}
		stat := info.Sys().(*syscall.Stat_t) //nolint:forcetypeassert // of a file on disk it is
		if err := errors.Join(in.Lchown(name, int(stat.Uid), int(stat.Gid)), in.Chmod(name, info.Mode()), in.Chtimes(name, info.ModTime(), info.ModTime())); err != nil {
			return err
		}
	}
	return nil
}

func openFolder(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// fit has the spec of the new container be of what the old one was: CRIU brings
// back mounts, rights and profiles, and nothing of them can be chosen anew.
// errs.Conflict: the new container is to be another one.
func (o *origin) fit(oci *specs.Spec) error {
	if o == nil {
		return nil
	}
	was, is := o.oci.Process, oci.Process
	if !o.exact {
		is.Args, is.Env, is.Cwd, is.User, is.Rlimits = was.Args, was.Env, was.Cwd, was.User, was.Rlimits
	}
	for _, part := range []struct {
		what    string
		was, is any
	}{
		{"mounts", mountsOf(&o.oci), mountsOf(oci)},
		{"namespaces", namespacesOf(&o.oci), namespacesOf(oci)},
		{"user namespace", o.oci.Linux.UIDMappings, oci.Linux.UIDMappings},
		{"terminal", was.Terminal, is.Terminal},
		{"command", was.Args, is.Args},
		{"environment", was.Env, is.Env},
		{"working directory", was.Cwd, is.Cwd},
		{"user", was.User, is.User},
		{"capabilities", was.Capabilities, is.Capabilities},
		{"no_new_privs", was.NoNewPrivileges, is.NoNewPrivileges},
		{"AppArmor profile", was.ApparmorProfile, is.ApparmorProfile},
		{"SELinux label", was.SelinuxLabel, is.SelinuxLabel},
		{"seccomp profile", o.oci.Linux.Seccomp, oci.Linux.Seccomp},
		{"read-only root", o.oci.Root.Readonly, oci.Root.Readonly},
		{"masked paths", o.oci.Linux.MaskedPaths, oci.Linux.MaskedPaths},
		{"read-only paths", o.oci.Linux.ReadonlyPaths, oci.Linux.ReadonlyPaths},
	} {
		if !same(part.was, part.is) {
			had, wanted := differ(part.was, part.is)
			return errs.New(errs.Conflict, "the checkpoint does not fit: its %s: %s; wanted: %s", part.what, short(had), short(wanted))
		}
	}
	return nil
}

// mountsOf are the places of mounts, and how they are mounted.
func mountsOf(oci *specs.Spec) []string {
	var all []string
	for _, m := range oci.Mounts {
		options := slices.Sorted(slices.Values(m.Options))
		all = append(all, m.Destination+" ("+m.Type+" "+strings.Join(options, ",")+")")
	}
	slices.Sort(all)
	return all
}

// namespacesOf are the namespaces of its own, and those that it joins.
func namespacesOf(oci *specs.Spec) []string {
	var all []string
	for _, ns := range oci.Linux.Namespaces {
		own := "own"
		if ns.Path != "" {
			own = "joined"
		}
		all = append(all, string(ns.Type)+" ("+own+")")
	}
	slices.Sort(all)
	return all
}

// differ leaves out of two lists what is in both.
func differ(was, is any) (had, wanted any) {
	a, ok := was.([]string)
	b, also := is.([]string)
	if !ok || !also {
		return was, is
	}
	without := func(all, others []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(one string) bool { return slices.Contains(others, one) })
	}
	return without(a, b), without(b, a)
}

func short(v any) string {
	data, err := json.Marshal(v)
	if err != nil || len(data) < 300 {
		return string(data)
	}
	return string(data[:300]) + "…"
}
