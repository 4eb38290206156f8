package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"berth/base/errs"
)

// maxSocketPath is what fits into a unix socket's address.
const maxSocketPath = 107

// openDoor is where clients come to the node: what systemd listens on for it,
// what the keeper has held since the last node, with those who wait there, or a
// new socket.
func (n *node) openDoor(ctx context.Context) (*net.UnixListener, error) {
	if n.activated != nil {
		_, err := n.keeper.TakeSocket(ctx, "") // what is held for a node without systemd is not wanted
		return n.activated, err
	}
	held, err := n.keeper.TakeSocket(ctx, n.config.Socket)
	if err != nil {
		return nil, err
	}
	if held == nil {
		return listen(ctx, n.config.Socket, n.config.Group, n.log)
	}
	defer held.Close()
	if err := share(ctx, n.config.Socket, n.config.Group, n.log); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return listenerOf(held)
}

// listenerOf makes a listener of a file, which stays the caller's.
func listenerOf(file *os.File) (*net.UnixListener, error) {
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	socket, isUnix := listener.(*net.UnixListener)
	if !isUnix {
		return nil, errs.New(errs.Invalid, "%s is no unix socket", listener.Addr())
	}
	return socket, nil
}

// holdDoor has the keeper hold the socket until ctx is done and, so that a node
// which is restarted turns nobody away, for a while after that; but not when
// somebody has ended it by hand. What systemd listens on it holds itself.
func (n *node) holdDoor(ctx context.Context, listener *net.UnixListener) error {
	if n.activated == nil {
		file, err := listener.File()
		if err == nil {
			err = errors.Join(n.keeper.HoldSocket(ctx, n.config.Socket, file), file.Close())
		}
		if err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "clients are turned away while the node is restarted", "err", err)
		}
	}
	<-ctx.Done()
	if isByHand(ctx) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = n.keeper.DropSocket(ctx, n.config.Socket)
	}
	return ctx.Err()
}

// isByHand says whether ctx ended by ctrl-C, so that somebody sits there.
func isByHand(ctx context.Context) bool {
	return strings.HasPrefix(context.Cause(ctx).Error(), syscall.SIGINT.String())
}

// activated is what systemd listens on for this process, nil where it does not.
// Programs that are started later do not get it.
func activated(path string) (listener *net.UnixListener, err error) {
	for _, file := range activation.Files(true) {
		if err == nil {
			listener, err = listenerOf(file)
		}
		_ = file.Close()
	}
	if err == nil && listener != nil && listener.Addr().String() != path {
		err = errors.Join(errs.New(errs.Invalid, "it is %s, and the node is to answer on %s", listener.Addr(), path), listener.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("ListenStream= of systemd's .socket: %w", err)
	}
	return listener, nil
}

// listen opens the node's door at path, for root and the members of group.
// errs.Conflict: another node answers there. A socket that nobody answers on is
// one that a dead node left.
func listen(ctx context.Context, path, group string, log *slog.Logger) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, errs.New(errs.Invalid, "socket %s: the path is longer than %d bytes", path, maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // its members must reach the socket
		return nil, fmt.Errorf("socket: %w", err)
	}
	var dialer net.Dialer
	if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return nil, errs.New(errs.Conflict, "another node answers on %s: stop it, or give this one a socket of its own with --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// Made under a name nobody knows, so that nobody gets in before the rights
	// are set.
	hidden := path + ".new"
	_ = os.Remove(hidden)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	if err = share(ctx, hidden, group, log); err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return nil, fmt.Errorf("socket: %w", errors.Join(err, listener.Close()))
	}
	return listener, nil
}

// share lets root and the members of a group use a socket.
func share(ctx context.Context, path, group string, log *slog.Logger) error {
	gid := groupID(group)
	if gid == 0 && group != "root" {
		log.InfoContext(ctx, "only root may use the socket: the group does not exist", "group", group)
	}
	return errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)) //nolint:gosec // the group's right
}

// groupID is the number of a group; root's where there is none of that name.
func groupID(name string) int {
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0
	}
	gid, _ := strconv.Atoi(group.Gid)
	return gid
}
