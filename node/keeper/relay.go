package keeper

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clients are the descriptors through which we take part in a client's FIFOs.
var clients = [...]role{roleStdin, roleIn, roleOut, roleErr}

// relay moves bytes between two descriptors, one of them a pipe. It never has
// any in its own hands, for splice takes no more than it has delivered: a
// keeper may be killed at any point, and the next goes on.
type relay struct {
	from, to side // to.file nil: what comes is thrown away
	last     atomic.Uint32
	dry      chan struct{} // closed when nothing is left to read, after lastCall
	once     sync.Once
	end      func() // called when it is over
	say      *slog.Logger
}

// side is one end of a relay.
type side struct {
	file    *os.File
	raw     syscall.RawConn
	fd      int
	regular bool // a file: always writable, at its end
}

// What an empty source means after lastCall.
const (
	emptyIsDry uint32 = 1 // everything that the process wrote was moved, as far as one can see
	emptyIsEnd uint32 = 2
)

// spliceLimit is what one system call may move.
const spliceLimit = 64 << 10

// relay makes the relays of a process: a terminal to and from its FIFOs, and
// pipes to their files.
func (s *server) relay(c *child) error {
	c.relays, c.files = map[role]*relay{}, map[role]*os.File{}
	for from, to := range map[role]role{roleConsole: roleOut, roleIn: roleConsole, roleStdout: roleFileOut, roleStderr: roleFileErr} {
		if _, there := c.fds[from]; !there {
			continue
		}
		r := &relay{dry: make(chan struct{}), say: s.log.With(slog.String("id", c.ID))}
		var err1, err2 error
		r.from, err1 = c.side(from)
		r.to, err2 = c.side(to)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		switch from {
		case roleConsole:
			r.end = func() { s.letGo(c) }
		case roleIn:
			r.end = r.endInput
		}
		c.relays[from] = r
	}
	for _, r := range c.relays {
		s.work.Go(r.run)
	}
	return nil
}

// side gives a descriptor the one file by which all relays use it.
func (c *child) side(name role) (side, error) {
	fd, there := c.fds[name]
	if !there {
		return side{}, nil
	}
	if c.files[name] == nil {
		c.files[name] = os.NewFile(uintptr(fd), string(name))
	}
	e := side{file: c.files[name], fd: fd, regular: name == roleFileOut || name == roleFileErr}
	var err error
	e.raw, err = e.file.SyscallConn()
	return e, err
}

// closeOne closes one descriptor. Call it with server.mu held.
func (c *child) closeOne(name role) {
	fd, there := c.fds[name]
	if !there {
		return
	}
	delete(c.fds, name)
	if f := c.files[name]; f != nil {
		delete(c.files, name)
		_ = f.Close()
		return
	}
	_ = unix.Close(fd)
}

// leave ends what we do for a process that has ended. Where a client does not
// read what a terminal still says, the relay goes on until it does.
func (s *server) leave(c *child) {
	c.settle(settleLimit)
	if c.Output != Given {
		return
	}
	if r := c.relays[roleConsole]; r != nil {
		r.lastCall(emptyIsEnd)
		return
	}
	s.letGo(c)
}

// letGo lets clients see the end of their FIFOs. What they have not read yet
// stays until the process is forgotten.
func (s *server) letGo(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, logged := c.fds[roleLogger]
	_, filed := c.fds[roleFileOut]
	for held, rest := range map[role]role{roleOut: roleRestOut, roleErr: roleRestErr} {
		fd, there := c.fds[held]
		if !there || logged || filed {
			continue
		}
		if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && n > 0 {
			if end, err := reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK); err == nil {
				c.fds[rest] = end
			}
		}
	}
	for _, name := range clients {
		c.closeOne(name)
	}
	if s.processes[c.ID] == c { // not forgotten, and the name another's
		s.tell(message{Op: opLetGo, ID: c.ID})
	}
}

// run moves until the source ends, or is closed.
func (r *relay) run() {
	defer func() {
		r.isDry()
		if r.end != nil {
			r.end()
		}
	}()
	for {
		n, err := r.move()
		switch {
		case n > 0:
		case err == nil, errors.Is(err, unix.EIO) && !r.to.regular: // of a terminal: its other side is closed
			return
		case errors.Is(err, unix.EAGAIN):
			if !r.wait() {
				return
			}
		case r.to.file == nil:
			return
		default: // a full disk, a logger that is gone: the process goes on, and what it says is lost
			r.say.Warn("output is lost", slog.String("to", r.to.file.Name()), slog.Any("err", err))
			r.to = side{}
		}
	}
}

func (r *relay) isDry() { r.once.Do(func() { close(r.dry) }) }

// move moves what is there now. Nothing and no error: the end.
func (r *relay) move() (int, error) {
	switch {
	case r.to.file == nil:
		return discard(r.from)
	case r.to.regular:
		return appendTo(r.to, r.from)
	}
	return use(r.from, func(from int) (int, error) {
		return use(r.to, func(to int) (int, error) { return splice(from, to, spliceLimit) })
	})
}

// use lends a side's descriptor, which is not closed meanwhile.
func use(s side, do func(fd int) (int, error)) (n int, err error) {
	if lost := s.raw.Control(func(fd uintptr) { n, err = do(int(fd)) }); lost != nil {
		return 0, nil
	}
	return n, err
}

func discard(from side) (int, error) {
	var trash [4096]byte
	return use(from, func(fd int) (int, error) {
		n, err := unix.Read(fd, trash[:])
		return max(n, 0), err
	})
}

// appending guards the ends of files, by inode: several streams may go to one.
var appending [64]sync.Mutex

// appendTo moves to the end of a file. A descriptor that appends by itself
// cannot be spliced to.
func appendTo(to, from side) (int, error) {
	return use(from, func(pipe int) (int, error) {
		return use(to, func(file int) (int, error) {
			var st unix.Stat_t
			if err := unix.Fstat(file, &st); err != nil {
				return 0, err
			}
			if n, err := unix.IoctlGetInt(pipe, unix.TIOCINQ); err == nil && n == 0 && !hungUp(pipe) {
				return 0, unix.EAGAIN
			}
			lock := &appending[st.Ino%uint64(len(appending))]
			lock.Lock()
			defer lock.Unlock()
			end, err := unix.Seek(file, 0, unix.SEEK_END)
			if err != nil {
				return 0, err
			}
			for {
				n, err := unix.Splice(pipe, nil, file, &end, spliceLimit, unix.SPLICE_F_NONBLOCK)
				switch {
				case errors.Is(err, unix.EINVAL):
					return carry(pipe, file, end)
				case !errors.Is(err, unix.EINTR):
					return int(max(n, 0)), err
				}
			}
		})
	})
}

// carry is for file systems that know no splice.
func carry(pipe, file int, end int64) (int, error) {
	var buf [4096]byte
	n, err := unix.Read(pipe, buf[:])
	if n <= 0 || err != nil {
		return 0, err
	}
	for done := 0; done < n; {
		m, err := unix.Pwrite(file, buf[done:n], end+int64(done))
		if err != nil {
			return done, err
		}
		done += m
	}
	return n, nil
}

// wait waits until there is something to do. false: it is over.
func (r *relay) wait() bool {
	if r.to.file != nil && !r.to.regular && !ready(r.to.fd, unix.POLLOUT) {
		return await(r.to.raw.Write, r.to.fd, unix.POLLOUT, func() { _ = r.to.file.SetWriteDeadline(time.Time{}) })
	}
	last := r.last.Load()
	if ready(r.from.fd, unix.POLLIN) { // it was the other side that could not, and now can
		return true
	}
	switch {
	case last == emptyIsDry && r.to.regular: // of a terminal the end is still to come
		r.isDry()
	case last == emptyIsEnd:
		return false
	}
	return await(r.from.raw.Read, r.from.fd, unix.POLLIN, func() { _ = r.from.file.SetReadDeadline(time.Time{}) })
}

// await waits until fd is ready or the waiting is cut short. false: closed.
func await(wait func(func(uintptr) bool) error, fd int, events int16, again func()) bool {
	err := wait(func(uintptr) bool { return ready(fd, events) })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		again()
		return true
	}
	return err == nil
}

// ready: the descriptor can be used, or is closed on its other side.
func ready(fd int, events int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(p, 0)
	return err != nil || n > 0
}

// lastCall says that the process has ended, and wakes the relay.
func (r *relay) lastCall(what uint32) {
	r.last.Store(what)
	_ = r.from.file.SetReadDeadline(time.Unix(1, 0))
}

// endInput tells a terminal that its client has nothing more to say, as a
// person would: by the key for it, where the program reads lines.
func (r *relay) endInput() {
	_, _ = use(r.to, func(fd int) (int, error) {
		mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil || mode.Lflag&unix.ICANON == 0 {
			return 0, err
		}
		return unix.Write(fd, mode.Cc[unix.VEOF:unix.VEOF+1])
	})
}
