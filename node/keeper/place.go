package keeper

import (
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// place is what a client named for one stream.
type place struct {
	scheme string // "" for a path, fifo, file, binary, binary-v2; nowhere for /dev/null
	path   string
	args   []string // of a logger
}

const nowhere = "nowhere"

func (p place) logger() bool { return p.scheme == "binary" || p.scheme == "binary-v2" }

func parsePlace(text string) (place, error) {
	if text == "" {
		return place{scheme: nowhere}, nil
	}
	if filepath.IsAbs(text) {
		return place{path: text}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return place{}, errs.New(errs.Invalid, "stream %q: %w", text, err)
	}
	p := place{scheme: u.Scheme, path: filepath.Clean(u.Path)}
	switch {
	case p.scheme == "fifo", p.scheme == "file":
	case p.logger():
		if p.args, err = loggerArgs(u.RawQuery); err != nil {
			return place{}, errs.New(errs.Invalid, "stream %q: %w", text, err)
		}
	default:
		return place{}, errs.New(errs.Invalid, "stream %q: neither a path nor fifo, file or binary", text)
	}
	if u.Host != "" || !filepath.IsAbs(u.Path) {
		return place{}, errs.New(errs.Invalid, "stream %q: its path does not begin with a slash", text)
	}
	return p, nil
}

// loggerArgs are the keys of a query, each followed by its first value, in the
// order of the query.
func loggerArgs(query string) ([]string, error) {
	var args []string
	seen := map[string]bool{}
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		key, err := url.QueryUnescape(name)
		if err != nil {
			return nil, err
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, err
		}
		if !seen[key] {
			args = append(args, key, value)
		}
		seen[key] = true
	}
	return args, nil
}

// found is something that is there, held by a descriptor that can do nothing
// but be opened anew: the path may be another's by then.
type found struct {
	path string
	fd   int
	stat unix.Stat_t
}

// find looks for what p names, and makes a file that is not there. The caller
// closes it.
func (p place) find() (found, error) {
	if p.scheme == "file" {
		if err := p.create(); err != nil {
			return found{}, err
		}
	}
	fd, err := unix.Open(p.path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return found{}, errs.New(kindOf(err), "stream %s: %w", p.path, err)
	}
	f := found{path: p.path, fd: fd}
	err = unix.Fstat(fd, &f.stat)
	switch {
	case err != nil:
	case p.scheme == "fifo" && !f.is(unix.S_IFIFO):
		err = errs.New(errs.Invalid, "stream %s: not a FIFO", p.path)
	case p.scheme == "file" && !f.is(unix.S_IFREG):
		err = errs.New(errs.Invalid, "stream %s: not a file", p.path)
	case !f.is(unix.S_IFIFO) && !f.is(unix.S_IFREG) && !f.is(unix.S_IFCHR):
		err = errs.New(errs.Invalid, "stream %s: neither a FIFO nor a file", p.path)
	}
	if err != nil {
		f.close()
	}
	return f, err
}

func (f found) close() { _ = unix.Close(f.fd) }

func (f found) is(kind uint32) bool { return f.stat.Mode&unix.S_IFMT == kind }

func (f found) same(as *unix.Stat_t) bool {
	return as != nil && f.stat.Dev == as.Dev && f.stat.Ino == as.Ino
}

func (f found) open(flags int) (int, error) {
	fd, err := reopen(f.fd, flags)
	if err != nil {
		return -1, errs.New(kindOf(err), "stream %s: %w", f.path, err)
	}
	return fd, nil
}

// reopen opens what fd stands for a second time.
func reopen(fd, flags int) (int, error) {
	return unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
}

// create makes the file of p if it is not there, with the folders above it.
func (p place) create() error {
	if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
		return errs.New(kindOf(err), "stream %s: %w", p.path, err)
	}
	fd, err := unix.Open(p.path, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return errs.New(kindOf(err), "stream %s: %w", p.path, err)
	}
	return unix.Close(fd)
}

// kindOf tells what a client can do about a path that cannot be opened.
func kindOf(err error) errs.Kind {
	switch {
	case errs.IsAny(err, unix.ENOENT, unix.ENOTDIR):
		return errs.NotFound
	case errs.IsAny(err, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE):
		return errs.Exhausted
	case errs.IsAny(err, unix.EACCES, unix.EPERM, unix.EROFS, unix.ELOOP, unix.ENAMETOOLONG, unix.EISDIR, unix.EINVAL, unix.ENXIO, unix.ENODEV):
		return errs.Invalid
	}
	return errs.Internal
}
