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

	"berth/node/logfile"
)

// child is one process of the keeper.
type child struct {
	record               // Exit is set when it may be reported; guarded by server.mu
	fds     map[role]int // guarded by server.mu
	sink    *sink        // nil unless Output is ToLog
	streams []*stream
	relays  map[role]*relay   // of given streams, by where they take from
	files   map[role]*os.File // of relays; guarded by server.mu
	told    chan struct{}     // closed when node knows the process, and may hear of its end
	pidfd   *os.File          // of a process that is not our child, or not yet: its end is seen there
	awaited bool              // reap may meet its end; guarded by server.mu
}

// passed is the order in which descriptors are passed on.
var passed = [...]role{
	rolePidfd, roleStdin, roleStdout, roleStderr, roleConsole, roleHoldOut, roleHoldIn,
	roleOut, roleErr, roleIn, roleFileOut, roleFileErr, roleRestOut, roleRestErr, roleLogger, roleQuiet,
}

// describe returns what another process must get to know c. Call it with
// server.mu held, and send before letting go.
func (c *child) describe() (*record, []int) {
	r := c.record
	r.Roles = nil
	var fds []int
	for _, role := range passed {
		if fd, ok := c.fds[role]; ok {
			r.Roles = append(r.Roles, role)
			fds = append(fds, fd)
		}
	}
	return &r, fds
}

// open gives c its sink and streams. Nothing moves before flow.
func (c *child) open(n *notes, log *slog.Logger) error {
	if c.Output != ToLog {
		return nil
	}
	w, err := logfile.OpenWriter(c.Log.Path, c.Log.MaxSize, c.Log.MaxFiles)
	if err != nil {
		return err
	}
	c.sink = &sink{log: w, note: &n.file[c.Slot], holdOut: c.fds[roleHoldOut], holdIn: c.fds[roleHoldIn], say: log.With(slog.String("id", c.ID))}
	return nil
}

// flow starts to move output, each stream in a goroutine.
func (s *server) flow(c *child) error {
	if c.Output == Given {
		return s.relay(c)
	}
	return c.flow(s.spaces, &s.work)
}

func (c *child) flow(spaces *workspaces, wg *sync.WaitGroup) error {
	if c.sink == nil {
		return nil
	}
	for _, r := range []role{roleStdout, roleStderr, roleConsole} {
		fd, ok := c.fds[r]
		if !ok {
			continue
		}
		s := &stream{fd: fd, terminal: r == roleConsole, name: logfile.Stdout, sink: c.sink, spaces: spaces, dry: make(chan struct{})}
		if r == roleStderr {
			s.name = logfile.Stderr
		}
		s.file = os.NewFile(uintptr(fd), string(r))
		var err error
		if s.raw, err = s.file.SyscallConn(); err != nil {
			return err
		}
		c.streams = append(c.streams, s)
	}
	for _, s := range c.streams {
		wg.Go(s.run)
	}
	return nil
}

// close closes every descriptor and so ends the streams. Call it with
// server.mu held.
func (c *child) close() {
	for _, s := range c.streams {
		_ = s.file.Close()
	}
	if len(c.streams) > 0 {
		delete(c.fds, roleStdout)
		delete(c.fds, roleStderr)
		delete(c.fds, roleConsole)
	}
	if c.pidfd != nil {
		_ = c.pidfd.Close()
		delete(c.fds, rolePidfd)
	}
	for name := range c.files {
		c.closeOne(name)
	}
	if c.sink != nil {
		c.sink.close()
		delete(c.fds, roleHoldOut)
		delete(c.fds, roleHoldIn)
	}
	for _, fd := range c.fds {
		_ = unix.Close(fd)
	}
	clear(c.fds)
}

// settle waits until all output of an ended process is in the log. Some
// other process may hold the pipe open and go on writing, so this has a limit.
func (c *child) settle(limit time.Duration) {
	if len(c.streams)+len(c.relays) == 0 {
		return
	}
	var dry []chan struct{}
	for name, r := range c.relays {
		if name != roleIn {
			r.lastCall(emptyIsDry)
			dry = append(dry, r.dry)
		}
	}
	for _, s := range c.streams {
		s.last.Store(true)
		_ = s.file.SetReadDeadline(time.Unix(1, 0)) // wakes it
		dry = append(dry, s.dry)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, dry := range dry {
		select {
		case <-dry:
		case <-timer.C:
			return
		}
	}
}

// stream is one pipe or terminal on its way to the log.
type stream struct {
	fd       int
	file     *os.File
	raw      syscall.RawConn
	terminal bool
	name     logfile.Stream
	sink     *sink
	spaces   *workspaces
	last     atomic.Bool   // the process has ended
	dry      chan struct{} // closed when, after that, nothing was left to read
	once     sync.Once
}

// patience is how long the rest of a line may take before its beginning is
// logged by itself.
const patience = 10 * time.Millisecond

// run moves output until every writer is gone.
func (s *stream) run() {
	defer s.once.Do(func() { close(s.dry) })
	flush, armed := false, false
	for {
		var v verdict
		var err error
		waitErr := s.raw.Read(func(uintptr) bool {
			v, err = s.move(flush || s.last.Load())
			if v == unended && !armed {
				armed = s.file.SetReadDeadline(time.Now().Add(patience)) == nil
			}
			return v == moved || v == ended
		})
		flush = errors.Is(waitErr, os.ErrDeadlineExceeded)
		switch {
		case flush, armed && v == moved:
			armed = false
			_ = s.file.SetReadDeadline(time.Time{})
		case waitErr != nil: // forgotten
			return
		}
		if err != nil {
			s.sink.say.Error("output stopped", slog.Any("err", err))
			return
		}
		if v == ended {
			return
		}
	}
}

// move moves what is there now.
func (s *stream) move(flush bool) (verdict, error) {
	last := s.last.Load()
	w, err := s.spaces.borrow()
	if err != nil {
		return ended, err
	}
	defer s.spaces.giveBack(w)
	var v verdict
	if s.terminal {
		v, err = s.sink.fromTerminal(s.fd, w)
	} else {
		v, err = s.sink.fromPipe(s.fd, s.name, w, flush)
	}
	if v == empty && last {
		s.once.Do(func() { close(s.dry) })
	}
	return v, err
}
