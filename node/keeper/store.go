package keeper

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// The store: descriptors that are node's own and nobody's process. They live as
// long as one of the two halves does.

// Hold keeps duplicates of files under a name, in the place of those that it
// had. They outlive node, and the keeper too. The files stay the caller's.
func (k *Keeper) Hold(ctx context.Context, name string, files ...*os.File) error {
	if name == "" || len(files) == 0 || len(files) > maxFiles {
		return errs.New(errs.Invalid, "hold %q: want a name and 1 to %d files, not %d", name, maxFiles, len(files))
	}
	fds := make([]int, 0, len(files))
	for _, f := range files {
		fd, err := duplicateFile(f)
		if err != nil {
			closeAll(fds)
			return fmt.Errorf("hold %s: %w", name, err)
		}
		fds = append(fds, fd)
	}
	k.storing.Lock()
	defer k.storing.Unlock()
	k.mu.Lock()
	old := k.kept[name]
	k.kept[name] = fds // from here on a new keeper is given them
	k.mu.Unlock()
	closeAll(old)
	if _, err := k.ask(ctx, message{Op: keepOp(name), ID: name, files: fds}, true); err != nil {
		k.letGoOf(name)
		return fmt.Errorf("hold %s: %w", name, err)
	}
	return nil
}

// keepOp has a keeper that is too old for sockets refuse them.
func keepOp(name string) op {
	if strings.HasPrefix(name, socketPrefix) {
		return opListen
	}
	return opKeep
}

// letGoOf closes node's own duplicates.
func (k *Keeper) letGoOf(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	closeAll(k.kept[name])
	delete(k.kept, name)
}

// Held returns all that Hold was given, by this node and by those before it.
// The files are the caller's to close.
func (k *Keeper) Held() (map[string][]*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	held := make(map[string][]*os.File, len(k.kept))
	for name, fds := range k.kept {
		for i, fd := range fds {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				closeFiles(held)
				return nil, fmt.Errorf("held %s: %w", name, err)
			}
			held[name] = append(held[name], os.NewFile(uintptr(dup), name+" "+strconv.Itoa(i)))
		}
	}
	return held, nil
}

func closeFiles(all map[string][]*os.File) {
	for _, files := range all {
		for _, f := range files {
			_ = f.Close()
		}
	}
}

// Drop lets go of what is held under a name. Nothing is no error.
func (k *Keeper) Drop(ctx context.Context, name string) error {
	k.storing.Lock()
	defer k.storing.Unlock()
	k.letGoOf(name)
	_, err := k.ask(ctx, message{Op: opDrop, ID: name}, true)
	k.letGoOf(name) // a keeper may have listed it meanwhile
	return err
}

// learnKept takes over what the keeper lists, unless it is known.
func (k *Keeper) learnKept(name string, fds []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, known := k.kept[name]; known || len(fds) == 0 {
		closeAll(fds)
		return
	}
	k.kept[name] = fds
}

// duplicateFile returns a descriptor of its own for an open file.
func duplicateFile(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, dupErr
}

// keep is the keeper's side of Hold.
func (s *server) keep(name string, fds []int) error {
	if name == "" || len(fds) == 0 {
		closeAll(fds)
		return errs.New(errs.Invalid, "nothing to hold under %q", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.kept[name])
	s.kept[name] = fds
	return nil
}

// unkeep is the keeper's side of Drop. Call it with s.mu held.
func (s *server) unkeep(name string) {
	removeSocket(name, s.kept[name])
	closeAll(s.kept[name])
	delete(s.kept, name)
}
