package keeper

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/logfile"
)

// sink takes the output of one process to its log, so that a keeper killed
// at any point neither loses nor doubles a byte:
//
//  1. look at what the process wrote, without taking it (tee)
//  2. note where in the log it will go
//  3. move it from the process's pipe into the holding pipe (splice)
//  4. write the records to the log
//  5. empty the holding pipe
//
// Node has duplicates of both pipes. To the next keeper a holding pipe with
// bytes in it means that the note is true and step 4 must be done again; an
// empty one means that the log is complete.
type sink struct {
	mu      sync.Mutex // held from 2 to 5: both streams share one log and one pipe
	log     *logfile.Writer
	note    *note
	holdOut int // read end of the holding pipe
	holdIn  int
	lost    bool // the log could not be written last time
	said    time.Time
	say     *slog.Logger
}

// verdict is what became of one attempt to move output.
type verdict uint8

const (
	moved   verdict = iota
	empty           // nothing there now
	unended         // the beginning of a line only; the rest may be about to come
	ended           // nothing will come any more
)

// fromPipe moves what is in the pipe fd. Whole lines are taken first; a
// beginning of a line is left there unless flush says that it is all there is.
func (k *sink) fromPipe(fd int, stream logfile.Stream, w *workspace, flush bool) (verdict, error) {
	text, err := w.peek(fd)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return empty, nil
	case err != nil:
		return ended, fmt.Errorf("peek at output: %w", err)
	case len(text) == 0:
		return ended, nil
	}
	if whole := lastLine(text); whole > 0 {
		text = text[:whole]
	} else if len(text) < logfile.MaxText && !flush && !hungUp(fd) {
		return unended, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	records, taken := logfile.Append(w.out[:0], k.log.Room(cap(w.out)), time.Now(), stream, text)
	k.complain("not rotated", k.log.Reserve(len(records)))
	k.annotate(stream, taken)
	n, err := splice(fd, k.holdIn, taken)
	if err != nil || n == 0 {
		return empty, nil // the process itself read its own output; look again
	}
	if n < taken { // likewise
		k.note.taken.Store(uint64(n))
		records, _ = logfile.Append(w.out[:0], cap(w.out), time.Now(), stream, text[:n])
	}
	k.append(records)
	return moved, w.drain(k.holdOut, n)
}

// fromTerminal moves what a terminal has to say. One cannot look into a
// terminal, so the bytes are looked at in the holding pipe.
func (k *sink) fromTerminal(fd int, w *workspace) (verdict, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.complain("not rotated", k.log.Reserve(1))
	k.annotate(logfile.Stdout, 0)
	n, err := splice(fd, k.holdIn, k.log.Room(cap(w.in))/2)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return empty, nil
	case errors.Is(err, unix.EIO), err == nil && n == 0:
		return ended, nil // the other side is closed
	case err != nil:
		return ended, fmt.Errorf("read terminal: %w", err)
	}
	return moved, k.flush(w)
}

// flush logs what is in the holding pipe.
func (k *sink) flush(w *workspace) error {
	text, err := w.peek(k.holdOut)
	if err != nil {
		return fmt.Errorf("peek at held output: %w", err)
	}
	k.note.taken.Store(uint64(len(text)))
	records, _ := logfile.Append(w.out[:0], 1<<30, time.Now(), logfile.Stream(k.note.stream.Load()), text)
	k.append(records)
	return w.drain(k.holdOut, len(text))
}

// recover finishes what a keeper that is gone had begun.
func (k *sink) recover(w *workspace) error {
	text, err := w.peek(k.holdOut)
	if errors.Is(err, unix.EAGAIN) || len(text) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("peek at held output: %w", err)
	}
	if n := k.note.taken.Load(); n == 0 || n == uint64(len(text)) {
		records, _ := logfile.Append(nil, 1<<30, time.Now(), logfile.Stream(k.note.stream.Load()), text)
		k.note.taken.Store(uint64(len(text))) // should we die while emptying it
		k.complain("output may be lost", k.log.Rewrite(k.note.inode.Load(), int64(k.note.offset.Load()), records))
	} // else it died while emptying the pipe: the log was complete
	return w.drain(k.holdOut, len(text))
}

func (k *sink) annotate(stream logfile.Stream, taken int) {
	inode, offset := k.log.Where()
	k.note.inode.Store(inode)
	k.note.offset.Store(uint64(offset))
	k.note.stream.Store(uint64(stream))
	k.note.taken.Store(uint64(taken))
}

// append writes to the log. When it cannot, the process goes on, and what it
// writes meanwhile is lost: a full disk must not hang it.
func (k *sink) append(records []byte) {
	err := k.log.Write(records)
	k.lost = err != nil
	k.complain("output is lost", err)
}

// complain says what went wrong with the log, once a minute.
func (k *sink) complain(what string, err error) {
	if err != nil && time.Since(k.said) > time.Minute {
		k.said = time.Now()
		k.say.Warn("log cannot be written", slog.String("so", what), slog.Any("err", err))
	}
}

func (k *sink) reopen() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.log.Reopen()
}

func (k *sink) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.log.Close()
	closeAll([]int{k.holdOut, k.holdIn})
}

func lastLine(text []byte) int {
	for i := len(text); i > 0; i-- {
		if text[i-1] == '\n' {
			return i
		}
	}
	return 0
}

// hungUp: every writer of the pipe is gone.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLHUP != 0
}

func splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK)
		if !errors.Is(err, unix.EINTR) {
			return int(max(m, 0)), err
		}
	}
}

// workspace is what moving output takes: a scratch pipe to look into other
// pipes, and buffers. Few are shared by all streams.
type workspace struct {
	scratchOut, scratchIn int
	in, out               []byte
}

func newWorkspace() (*workspace, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("scratch pipe: %w", err)
	}
	return &workspace{p[0], p[1], make([]byte, 64<<10), make([]byte, 0, 128<<10)}, nil
}

// peek copies what is in the pipe fd without taking it. Nothing and no
// error: the pipe is empty, and no writer is left.
func (w *workspace) peek(fd int) ([]byte, error) {
	var n int64
	for {
		var err error
		if n, err = unix.Tee(fd, w.scratchIn, len(w.in), unix.SPLICE_F_NONBLOCK); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
	for got := 0; got < int(n); {
		m, err := unix.Read(w.scratchOut, w.in[got:n])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m == 0 {
			return nil, errors.Join(err, io.ErrUnexpectedEOF)
		}
		got += m
	}
	return w.in[:n], nil
}

// drain takes n bytes out of the pipe fd; they are known already.
func (w *workspace) drain(fd, n int) error {
	for n > 0 {
		m, err := unix.Read(fd, w.in[:min(n, len(w.in))])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || m == 0:
			return fmt.Errorf("empty holding pipe: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		n -= max(m, 0)
	}
	return nil
}

// workspaces lends out a fixed number of workspaces, made when needed; the
// one used last is lent first, so that a quiet keeper has only one.
type workspaces struct {
	mu   sync.Mutex
	free sync.Cond
	idle []*workspace
	left int // may still be made
}

func newWorkspaces(n int) *workspaces {
	s := &workspaces{left: n}
	s.free.L = &s.mu
	return s
}

func (s *workspaces) borrow() (*workspace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if n := len(s.idle); n > 0 {
			w := s.idle[n-1]
			s.idle = s.idle[:n-1]
			return w, nil
		}
		if s.left > 0 {
			w, err := newWorkspace()
			if err == nil {
				s.left--
			}
			return w, err
		}
		s.free.Wait()
	}
}

func (s *workspaces) giveBack(w *workspace) {
	s.mu.Lock()
	s.idle = append(s.idle, w)
	s.mu.Unlock()
	s.free.Signal()
}
