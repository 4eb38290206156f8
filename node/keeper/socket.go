package keeper

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Sockets: what node listens on lies in the store too, under its path, so that
// those who connect while there is no node wait for the next one instead of
// being refused. They do not wait for long: linger after a node has gone, unless
// one has taken the socket over, the keeper removes its path and closes it.
//
// Beside the socket itself lies a descriptor of the place where it is bound. A
// path that leads elsewhere by now is somebody else's.

const socketPrefix = "socket:"

// HoldSocket is Hold for what listens at path. errs.Unsupported: the keeper is
// an older program.
func (k *Keeper) HoldSocket(ctx context.Context, path string, listener *os.File) error {
	place, err := placeOf(path)
	if err != nil {
		return err
	}
	defer place.Close()
	return k.Hold(ctx, socketPrefix+path, listener, place)
}

// TakeSocket returns what listens at path since an earlier node, with those who
// are waiting there; nil if nothing does. From here on only DropSocket closes
// it. Sockets that are held for other paths are dropped.
func (k *Keeper) TakeSocket(ctx context.Context, path string) (listener *os.File, err error) {
	held, err := k.Held()
	if err != nil {
		return nil, err
	}
	defer closeFiles(held)
	for name, files := range held {
		other, isSocket := strings.CutPrefix(name, socketPrefix)
		if !isSocket || len(files) != 2 {
			continue
		}
		// Held anew before it is looked at: the keeper's patience may just be over.
		if other == path && k.Hold(ctx, name, files...) == nil && leadsTo(path, int(files[1].Fd())) {
			listener, held[name] = files[0], files[1:]
			continue
		}
		if err := k.DropSocket(ctx, other); err != nil {
			return nil, err
		}
	}
	return listener, nil
}

// DropSocket has nobody wait at path any more: it is removed if it is still that
// of the socket, and whoever is there hears of it. Nothing held is no error.
func (k *Keeper) DropSocket(ctx context.Context, path string) error {
	return k.Drop(ctx, socketPrefix+path)
}

// placeOf is a descriptor of a file, whatever it is.
func placeOf(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold the socket %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// leadsTo says whether path is that of place. No other file gets its number
// while place is open.
func leadsTo(path string, place int) bool {
	var found, held unix.Stat_t
	return unix.Lstat(path, &found) == nil && unix.Fstat(place, &held) == nil && found.Dev == held.Dev && found.Ino == held.Ino
}

// The keeper's side.

// keepSocket is keep for a socket, which a node serves from now on.
func (s *server) keepSocket(name string, fds []int) error {
	if len(fds) != 2 || !strings.HasPrefix(name, socketPrefix) {
		closeAll(fds)
		return errs.New(errs.Invalid, "no socket to hold under %q", name)
	}
	err := s.keep(name, fds)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unserved = nil
	return err
}

// leaveSockets gives the sockets up some time from now, unless a node takes
// them over. One that comes and goes without doing so buys no time. Call it with
// s.mu held.
func (s *server) leaveSockets() {
	if s.unserved != nil {
		return
	}
	var limit *time.Timer
	limit = time.AfterFunc(s.config.linger(), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.unserved == limit {
			s.closeSockets()
		}
	})
	s.unserved = limit
}

// closeSockets gives them up now. Call it with s.mu held.
func (s *server) closeSockets() {
	s.unserved = nil
	for name := range s.kept {
		if strings.HasPrefix(name, socketPrefix) {
			s.unkeep(name)
		}
	}
}

// removeSocket removes the path of a socket before it is closed: who is then
// told that it broke off finds nobody there. Other names have none.
func removeSocket(name string, fds []int) {
	if path, isSocket := strings.CutPrefix(name, socketPrefix); isSocket && leadsTo(path, fds[1]) {
		_ = os.Remove(path)
	}
}
