package overlay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
	"berth/node/snapshot"
)

// variants keeps the regular files of unpacked layers once more, as hard links
// under what they are: a layer that has an equal file at the same path gets a
// further name of the same inode.
//
//	links/ab/cdef…       a file; nobody needs it once this is its only name
//	layers/<id>/links    the files that this layer may have in common with links/
//
// A file that is found here is compared with the one to come, byte by byte,
// before it takes its place; so it does not matter what a loss of power has
// done to it. It also needs no lock: if the file's name here is taken away
// just when a layer takes the file, the layer has it, and others can no more
// find it.
type variants struct {
	fd  int // of links/; -1: hard links do not work here
	log *slog.Logger
}

const (
	linksFolder = "links"
	linksList   = "links" // beside a layer's fs
)

// openVariants makes links/ in dir and tries whether hard links into layers
// work.
func openVariants(dir, layers string, log *slog.Logger) (*variants, error) {
	links := filepath.Join(dir, linksFolder)
	if err := os.MkdirAll(links, 0o700); err != nil {
		return nil, errs.Full(err)
	}
	if err := tryLink(links, layers); err != nil {
		log.Warn("equal files of layers are not shared: no hard links here", "error", err)
		return &variants{fd: -1, log: log}, nil
	}
	fd, err := unix.Open(links, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", links, err)
	}
	return &variants{fd: fd, log: log}, nil
}

// tryLink links a file as layers do, by its descriptor.
func tryLink(from, to string) error {
	old, name := filepath.Join(from, "probe"), filepath.Join(to, "aside-probe")
	_ = os.Remove(old)
	_ = os.Remove(name)
	f, err := os.Create(old)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Linkat(int(f.Fd()), "", unix.AT_FDCWD, name, unix.AT_EMPTY_PATH)
	_ = os.Remove(name)
	return errors.Join(err, os.Remove(old))
}

func (v *variants) close() {
	if v.fd >= 0 {
		_ = unix.Close(v.fd)
	}
}

// links is what an ingest looks into.
func (v *variants) links() folder.Links {
	if v.fd < 0 {
		return nil
	}
	return v
}

func nameOf(key folder.Variant) string {
	name := hex.EncodeToString(key[:])
	return name[:2] + "/" + name[2:]
}

// Open implements folder.Links.
func (v *variants) Open(key folder.Variant) *os.File {
	fd, err := unix.Openat(v.fd, nameOf(key), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), linksFolder)
}

// keep gives the files of a layer their names here. Where there is an other
// file under that name, or one cannot have more names, the layer's stays its
// own.
func (v *variants) keep(ctx context.Context, layers int, id string, files []folder.File) error {
	if v.fd < 0 || len(files) == 0 {
		return nil
	}
	root, err := unix.Openat(layers, id+"/fs", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errs.IsAny(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer unix.Close(root)
	p := snapshot.NewHalfTime()
	err = folder.Keep(ctx, root, files, func(key folder.Variant, dirfd int, base string) error {
		name := nameOf(key)
		err := unix.Linkat(dirfd, base, v.fd, name, 0)
		if err == unix.ENOENT {
			_ = unix.Mkdirat(v.fd, name[:2], 0o700)
			err = unix.Linkat(dirfd, base, v.fd, name, 0)
		}
		if err != nil && !errs.IsAny(err, unix.EEXIST, unix.EMLINK) {
			return errs.Full(err)
		}
		return p.Step(ctx)
	})
	if errs.IsAny(err, unix.ENOENT) {
		return nil // removed meanwhile, and the sweeper drops what was kept
	}
	return err
}

// drop deletes those of keys that no layer has any more.
func (v *variants) drop(ctx context.Context, keys []folder.Variant) error {
	if v.fd < 0 {
		return nil
	}
	p := snapshot.NewHalfTime()
	for _, key := range keys {
		if err := dropLonely(v.fd, nameOf(key)); err != nil {
			return err
		}
		if err := p.Step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func dropLonely(dirfd int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Nlink == 1 {
		err = unix.Unlinkat(dirfd, name, 0)
	}
	if errs.IsAny(err, unix.ENOENT) {
		return nil
	}
	return err
}

// sift looks through all files for those that no layer has any more.
func (v *variants) sift(ctx context.Context) error {
	if v.fd < 0 {
		return nil
	}
	shards, err := folder.Names(v.fd)
	if err != nil {
		return err
	}
	p := snapshot.NewHalfTime()
	for _, shard := range shards {
		fd, err := unix.Openat(v.fd, shard, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		names, err := folder.Names(fd)
		for _, name := range names {
			if err == nil {
				err = dropLonely(fd, name)
			}
			if err == nil {
				err = p.Step(ctx)
			}
		}
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// writeList leaves the list of a layer's variants in its folder.
func writeList(layers int, id string, in folder.Unpacked) error {
	list := make([]byte, 0, (len(in.Linked)+len(in.Fresh))*len(folder.Variant{}))
	for _, v := range in.Linked {
		list = append(list, v[:]...)
	}
	for _, f := range in.Fresh {
		list = append(list, f.Variant[:]...)
	}
	fd, err := unix.Openat(layers, id+"/"+linksList, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("list the layer's links: %w", err)
	}
	f := os.NewFile(uintptr(fd), linksList)
	_, err = f.Write(list)
	return errors.Join(err, f.Close())
}

// readList returns the list of a layer; there is none where its ingest did not
// end, or it is no layer that was ingested.
func readList(layers int, id string) (keys []folder.Variant, found bool) {
	fd, err := unix.Openat(layers, id+"/"+linksList, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	f := os.NewFile(uintptr(fd), linksList)
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return nil, false
	}
	list := make([]byte, st.Size)
	if _, err := f.ReadAt(list, 0); err != nil && st.Size > 0 {
		return nil, false
	}
	for key := range slices.Chunk(list, len(folder.Variant{})) {
		if len(key) == len(folder.Variant{}) {
			keys = append(keys, folder.Variant(key))
		}
	}
	return keys, true
}
