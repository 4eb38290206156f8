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

	"berth/base/errs"
)

// maxSocketPath is what fits into a unix socket's address.
const maxSocketPath = 107

// listen opens the node's door at path, for root and the members of group.
// errs.Conflict: another node answers there. A socket that nobody answers on is
// one that a dead node left.
func listen(ctx context.Context, path, group string, log *slog.Logger) (net.Listener, error) {
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
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", hidden)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) //nolint:forcetypeassert // what network unix gives
	gid := groupID(group)
	if gid == 0 && group != "root" {
		log.InfoContext(ctx, "only root may use the socket: the group does not exist", "group", group)
	}
	err = errors.Join(os.Chown(hidden, 0, gid), os.Chmod(hidden, 0o660), os.Rename(hidden, path)) //nolint:gosec // the group's right
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return listener, nil
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
