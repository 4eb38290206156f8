package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// given lays the streams that a client named.
type given struct {
	*plumbing
	streams *Streams
	file    *unix.Stat_t // where stdout goes, if that is a file
}

// layGiven is lay for Launch.Streams.
func layGiven(l *Launch, n *nulls) (_ *plumbing, err error) {
	g := &given{plumbing: newPlumbing(n), streams: l.Streams}
	in, out, complaints, err := l.Streams.places()
	if err != nil {
		return nil, err
	}
	steps := []func() error{
		func() error { return g.input(in) },
		func() error { return g.output(1, out) },
		func() error { return g.output(2, complaints) },
	}
	if l.ConsoleSocket != "" {
		steps = []func() error{
			func() error { return g.listen(l.ConsoleSocket) },
			func() error { return g.feed(in) },
			func() error { return g.show(out) },
		}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			g.close()
			return nil, err
		}
	}
	return g.plumbing, nil
}

// places reads the three names. A file or a logger takes both outputs unless
// standard error has a place of another sort.
func (s *Streams) places() (in, out, complaints place, err error) {
	in, err1 := parsePlace(s.Stdin)
	out, err2 := parsePlace(s.Stdout)
	complaints, err3 := parsePlace(s.Stderr)
	switch err := errors.Join(err1, err2, err3); {
	case err != nil:
		return in, out, complaints, errs.New(errs.Invalid, "%w", err)
	case in.logger() || in.scheme == "file":
		return in, out, complaints, errs.New(errs.Invalid, "stream %q: standard input is a FIFO", s.Stdin)
	}
	unnamed := complaints.scheme == nowhere
	if unnamed && out.scheme == "file" || out.logger() && (unnamed || complaints.logger()) {
		complaints = out
	}
	return in, out, complaints, nil
}

// input is a process's standard input: its own descriptor, and of a FIFO the
// other end for us.
func (g *given) input(p place) (err error) {
	if p.scheme == nowhere {
		return g.null(0)
	}
	f, err := p.find()
	if err != nil {
		return err
	}
	defer f.close()
	if g.theirs[0], err = f.open(unix.O_RDONLY | unix.O_NONBLOCK); err != nil { // blocking, it would wait for a writer
		return err
	}
	if f.is(unix.S_IFIFO) {
		if err := g.hold(roleStdin, f, unix.O_WRONLY); err != nil {
			return err
		}
	}
	return unix.SetNonblock(g.theirs[0], false)
}

// output is the process's descriptor i.
func (g *given) output(i int, p place) (err error) {
	if p.scheme == nowhere {
		return g.null(i)
	}
	if p.logger() {
		g.logger = &p
		if g.listens[i-1], g.theirs[i], err = blockingPipe(); err != nil {
			return err
		}
		return g.own(g.theirs[i])
	}
	f, err := p.find()
	if err != nil {
		return err
	}
	defer f.close()
	switch {
	case f.is(unix.S_IFIFO):
		if err := g.hold([...]role{1: roleOut, roleErr}[i], f, unix.O_RDWR); err != nil {
			return err
		}
	case f.is(unix.S_IFREG) && i == 2 && f.same(g.file): // one pipe keeps their order
		g.theirs[2], err = unix.FcntlInt(uintptr(g.theirs[1]), unix.F_DUPFD_CLOEXEC, 0)
		return err
	case f.is(unix.S_IFREG):
		if i == 1 {
			g.file = &f.stat
		}
		g.theirs[i], err = g.toFile(i, f)
		return err
	}
	g.theirs[i], err = f.open(unix.O_WRONLY)
	return err
}

// toFile makes a pipe that flows into f.
func (g *given) toFile(i int, f found) (w int, err error) {
	r, w, err := pipe()
	if err != nil {
		return -1, err
	}
	g.ours[[...]role{1: roleStdout, roleStderr}[i]] = r
	if err := g.own(w); err != nil {
		return w, err
	}
	fd, err := f.open(unix.O_WRONLY)
	if err == nil {
		g.ours[[...]role{1: roleFileOut, roleFileErr}[i]] = fd
	}
	return w, err
}

// listen is what a runtime gets that makes a terminal itself.
func (g *given) listen(socket string) (err error) {
	if err = g.null(0); err != nil {
		return err
	}
	if g.capture, g.theirs[2], err = pipe(); err != nil {
		return err
	}
	if g.theirs[1], err = unix.FcntlInt(uintptr(g.theirs[2]), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	_ = os.Remove(socket)
	g.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	return err
}

// feed is what a terminal reads.
func (g *given) feed(p place) error {
	if p.scheme == nowhere {
		return nil
	}
	f, err := p.find()
	if err != nil {
		return err
	}
	defer f.close()
	if !f.is(unix.S_IFIFO) {
		return errs.New(errs.Invalid, "stream %s: a terminal is fed from a FIFO", p.path)
	}
	if err := g.hold(roleIn, f, unix.O_RDONLY); err != nil {
		return err
	}
	return g.hold(roleStdin, f, unix.O_WRONLY)
}

// show is where a terminal's output goes. It is moved by splice, so what is no
// pipe gets one before it.
func (g *given) show(p place) (err error) {
	if p.scheme == nowhere {
		return nil
	}
	if p.logger() {
		g.logger = &p
		var w, quiet int
		if g.listens[0], w, err = blockingPipe(); err != nil {
			return err
		}
		g.ours[roleOut] = w
		// A logger may take the end of one stream for the end of both, so that of
		// the one that a terminal does not have comes last, when all is forgotten.
		if g.listens[1], quiet, err = blockingPipe(); err != nil {
			return err
		}
		g.ours[roleQuiet] = quiet
		return errors.Join(unix.SetNonblock(w, true), g.own(w))
	}
	f, err := p.find()
	if err != nil {
		return err
	}
	defer f.close()
	switch {
	case f.is(unix.S_IFIFO):
		return g.hold(roleOut, f, unix.O_RDWR)
	case f.is(unix.S_IFREG):
		w, err := g.toFile(1, f)
		if w >= 0 {
			g.ours[roleOut] = w
			err = errors.Join(err, unix.SetNonblock(w, true))
		}
		return err
	case f.stat.Rdev == unix.Mkdev(1, 3):
		return nil
	}
	return errs.New(errs.Invalid, "stream %s: a terminal's output goes to a FIFO, a file or a logger", p.path)
}

// hold opens f for ourselves.
func (g *given) hold(name role, f found, flags int) error {
	fd, err := f.open(flags | unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	g.ours[name] = fd
	return g.own(fd)
}

// own gives a FIFO or a pipe the owner that the client wants.
func (g *given) own(fd int) error {
	if g.streams.UID == 0 && g.streams.GID == 0 {
		return nil
	}
	if err := unix.Fchown(fd, g.streams.UID, g.streams.GID); err != nil {
		return fmt.Errorf("owner of stream: %w", err)
	}
	return nil
}

func blockingPipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("make pipe: %w", err)
	}
	return p[0], p[1], nil
}
