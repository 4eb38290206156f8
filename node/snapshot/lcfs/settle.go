package lcfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// settlePatience is how long somebody who asks for it waits for a layer whose
// mount is still being taken down.
const settlePatience = 10 * time.Second

// errBusy says that a layer's folder may still be written to.
var errBusy = errs.New(errs.Unavailable, "something still writes to the layer's folder")

// Settle makes the layers of key's chain images and objects, and merges them.
// Unavailable: a mount that writes to one of them is still there.
func (s *Store) Settle(ctx context.Context, key snapshot.Key) error {
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	if rec.Kind != snapshot.KindCommitted {
		return errs.New(errs.Conflict, "settle snapshot %s: it is %s, not committed", key, rec.Kind)
	}
	if err := s.settleChain(ctx, key); err != nil {
		return fmt.Errorf("settle snapshot %s: %w", key, errs.Full(err))
	}
	if err := s.mergeChain(ctx, key, true); err != nil {
		return fmt.Errorf("settle snapshot %s: %w", key, errs.Full(err))
	}
	return nil
}

// settleChain settles the layers of a chain, from the bottom up. It waits for
// mounts that are on their way out.
func (s *Store) settleChain(ctx context.Context, key snapshot.Key) error {
	chain, err := s.chain(key)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(settlePatience)
	for _, rec := range slices.Backward(chain) {
		for {
			err := s.settle(ctx, rec)
			if err == nil {
				break
			}
			if !errors.Is(err, errBusy) || time.Now().After(deadline) {
				return fmt.Errorf("layer %s: %w", rec.Key, err)
			}
			if !snapshot.Rest(ctx, 50*time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// settle makes one layer an image and objects. Its folder stays, for those who
// stand on it.
func (s *Store) settle(ctx context.Context, rec *record) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	rec, err := s.find(rec.Key)
	if err != nil || rec.Kind != snapshot.KindCommitted || rec.isSettled() {
		return err
	}
	if below, err := s.find(rec.Parent); err == nil && s.partial && !below.isSettled() {
		return errBusy // it may have bodies of this one
	}
	if err := s.idle(rec.ID); err != nil {
		return err
	}
	s.unuse(byUpper(rec.ID)) // whoever wrote to it is gone
	batch, err := s.objects.Begin(ctx)
	if err != nil {
		return err
	}
	defer batch.End()
	_, letGoChain, err := s.pin(rec.Key)
	if err != nil {
		return err
	}
	defer letGoChain()
	made, err := s.readUpper(ctx, rec)
	if err != nil {
		return err
	}
	if err := s.adoptAll(ctx, batch, rec.ID, made); err != nil {
		return err
	}
	image, letGo, err := s.writeLayer(made.root)
	if err != nil {
		return err
	}
	defer letGo()
	size, inodes := tree.Usage(made.root)
	s.change(rec, func(r *record) {
		r.Delta, r.Fresh, r.Usage = image, s.boot, &snapshot.Usage{Size: size, Inodes: inodes}
	})
	s.nudge(s.unsafe)
	return nil
}

// unadopted is a file of a layer that is not settled.
type unadopted struct {
	*tree.Node
	bodyFile
}

// adoptAll makes objects of the files of a layer, in the order in which they
// lie on disk.
func (s *Store) adoptAll(ctx context.Context, batch *object.Batch, id string, made *content) error {
	files := make([]unadopted, 0, len(made.bodies))
	for n, body := range made.bodies {
		switch {
		case n.Size == 0 || n.Object != (tree.Digest{}):
		case body.id != id:
			return errs.New(errs.Internal, "%s is in layer %s, which is not settled", body.path, body.id)
		default:
			files = append(files, unadopted{n, body})
		}
	}
	slices.SortFunc(files, func(a, b unadopted) int { return cmp.Compare(a.inode, b.inode) })
	dirfd, err := openFolder(s.fs(id))
	if err != nil {
		return err
	}
	defer unix.Close(dirfd)
	if err := s.boundHoles(dirfd, files); err != nil {
		return err
	}
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := adopt(ctx, batch, dirfd, file.Node, file.bodyFile); err != nil {
			return err
		}
	}
	return nil
}

// boundHoles refuses files that claim far more than the disk has for them: to
// read exabytes of zeros nobody else's layers can wait.
func (s *Store) boundHoles(dirfd int, files []unadopted) error {
	left := s.maxLayer
	for _, file := range files {
		if file.Size <= inlineLimit {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, file.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: file.path, Err: err}
		}
		hole := max(0, st.Size-st.Blocks*sectorSize)
		if hole > left {
			return errs.New(errs.Unsupported, "%.200q: holes of more than %d bytes", file.path, s.maxLayer)
		}
		left -= hole
	}
	return nil
}

// adopt makes the body of a file in the layer's folder an object, or part of
// the tree if it is small.
func adopt(ctx context.Context, batch *object.Batch, dirfd int, n *tree.Node, body bodyFile) error {
	fd, err := openBodyAt(dirfd, body.path, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), body.path)
	defer f.Close()
	if err := lease(f); err != nil {
		return fmt.Errorf("%s: %w", body.path, err)
	}
	if n.Size <= inlineLimit {
		n.Body = make([]byte, n.Size)
		_, err = io.ReadFull(f, n.Body)
	} else {
		n.Object, err = batch.Adopt(ctx, f, n.Size)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", body.path, err)
	}
	return nil
}

// lease fails with errBusy if somebody has the file open for writing. While it
// holds, until f is closed, who opens it for writing waits.
func lease(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case errs.IsAny(err, unix.EAGAIN):
		return errBusy
	case errs.IsAny(err, unix.EINVAL, unix.EOPNOTSUPP, unix.EACCES):
		return nil // no leases on this file system
	case err != nil:
		return os.NewSyscallError("lease", err)
	}
	return nil
}

// idle fails with errBusy if some overlay still has the folder of id as its
// upper, be it one of ours or another process's.
func (s *Store) idle(id string) error {
	used := func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return s.uses.own[id] > 0
	}
	if used() {
		if s.dropStaleUses(); used() {
			return errBusy
		}
	}
	err := s.askUpper(id)
	if errs.IsAny(err, unix.EBUSY) {
		s.closeNow() // perhaps it is only waiting for that
		err = s.askUpper(id)
	}
	switch {
	case errs.IsAny(err, unix.EINVAL): // free: what it was asked for cannot be
		return nil
	case errs.IsAny(err, unix.EBUSY):
		return errBusy
	case err == nil:
		return errs.New(errs.Internal, "overlayfs takes one folder as upper and work folder")
	}
	return fmt.Errorf("ask for mounts of layer %s: %w", id, err)
}

// askUpper has overlayfs say EBUSY if it has a mount on this upper: with an
// index it insists on being the only one. The mount that is asked for can
// never be made, for its work folder is the upper itself.
func (s *Store) askUpper(id string) error {
	mount, err := mountFS("overlay", 0, func(fsfd int) error {
		upper := s.byDescriptor(id + "/fs")
		for _, option := range []string{"lowerdir=" + s.byDescriptor(emptyFolder), "upperdir=" + upper, "workdir=" + upper, "index=on"} {
			if err := set(fsfd, option); err != nil {
				return err
			}
		}
		return nil
	}, unix.FsconfigCreate)
	if err == nil {
		_ = unix.Close(mount)
	}
	return err
}

// dropUppers has the folders of settled layers deleted, once nothing stands on
// them and what took their place is safe.
func (s *Store) dropUppers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.heldBack)
	for _, rec := range s.byKey {
		if rec.claimed || !rec.Upper || !rec.isSettled() || rec.Boot != "" || rec.Fresh != "" {
			continue
		}
		if s.uses.uppers[rec.ID] > 0 || s.uses.own[rec.ID] > 0 {
			s.heldBack[rec.ID] = struct{}{}
			continue
		}
		changed := *rec
		changed.Upper = false
		s.put(&changed)
		s.sweeper.add(leftover{rec.ID, true})
	}
	s.discardFallen()
}
