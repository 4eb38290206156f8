package logfile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errStop ends a read early, without an error.
var errStop = errors.New("stop")

// Read calls fn for every record that q asks for, in the order of the log,
// and stops with fn's error. A log that does not exist is an empty one. A
// follower keeps the files open that are rotated away before it has read
// them, so a slow one loses nothing.
func Read(ctx context.Context, path string, q Query, fn func(Line) error) error {
	r, err := Open(path, q)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Each(ctx, fn)
}

// Open begins to read a log: what is written from now on is part of what Each
// will tell, however much later that is called, and whatever becomes of the
// files.
func Open(path string, q Query) (_ *Reader, err error) {
	r := &Reader{path: path, query: q, wake: make(chan struct{}, 1)}
	var inode uint64
	var offset int64
	if q.From != "" {
		if inode, offset, err = q.From.parse(); err != nil {
			return nil, err
		}
	}
	if q.Follow {
		if r.stop, err = r.watch(); err != nil {
			return nil, fmt.Errorf("follow log: %w", err)
		}
	}
	if err := r.begin(inode, offset); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Each calls fn for every record, as Read does. It may be called once.
func (r *Reader) Each(ctx context.Context, fn func(Line) error) error {
	r.fn, r.buf = fn, make([]byte, 64<<10)
	err := r.run(ctx)
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// Close lets go of the files, when Each has returned.
func (r *Reader) Close() {
	if r.stop != nil {
		r.stop()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	closeSegments(r.list)
	r.list = nil
}

// Reader is a log that is being read.
type Reader struct {
	path  string
	query Query
	fn    func(Line) error
	buf   []byte
	err   func() error // of the context
	stop  func()       // ends the watch

	inotify *os.File
	wake    chan struct{} // something may have changed

	mu     sync.Mutex
	list   []*segment // not read to the end, oldest first; the last one is the log's newest
	newest uint64
}

// begin opens what there is and finds the place to start.
func (r *Reader) begin(inode uint64, offset int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(); err != nil {
		return err
	}
	from := func(i int) {
		closeSegments(r.list[:i])
		r.list = r.list[i:]
	}
	if i := slices.IndexFunc(r.list, func(s *segment) bool { return s.inode == inode }); i >= 0 {
		from(i)
		r.list[0].offset = offset
	}
	if r.query.Tail < 0 {
		return nil
	}
	i, err := tail(r.list, r.query.Tail)
	from(i)
	return err
}

// run reads, and waits for more if it shall.
func (r *Reader) run(ctx context.Context) error {
	var passed <-chan time.Time
	if r.query.Follow && !r.query.Until.IsZero() {
		timer := time.NewTimer(time.Until(r.query.Until))
		defer timer.Stop()
		passed = timer.C
	}
	r.err = ctx.Err
	for last := !r.query.Follow; ; {
		if err := r.drain(); err != nil || last {
			return err
		}
		select {
		case <-r.wake:
		case <-r.query.Ended:
			last = true // once more: what was written before it was closed
		case <-passed:
			last = true
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := r.look(); err != nil {
			return err
		}
	}
}

// drain reads all there is. A file is done with when a newer one exists: it
// was complete before that one came.
func (r *Reader) drain() error {
	for {
		r.mu.Lock()
		if len(r.list) == 0 {
			r.mu.Unlock()
			return nil
		}
		s, more := r.list[0], len(r.list) > 1
		r.mu.Unlock()
		if err := s.read(&r.buf, r.pass); err != nil {
			return err
		}
		if !more {
			return nil
		}
		r.mu.Lock()
		r.list = r.list[1:]
		r.mu.Unlock()
		_ = s.file.Close()
	}
}

// pass gives a record to fn, or what the query leaves of it.
func (r *Reader) pass(l Line) error {
	q := &r.query
	if err := r.err(); err != nil {
		return err
	}
	if !q.Until.IsZero() && l.Time.After(q.Until) {
		return errStop
	}
	if l.Time.Before(q.Since) {
		return nil
	}
	if q.Skip > 0 {
		size := int64(len(l.Text))
		if !l.Partial {
			size++
		}
		if q.Skip >= size {
			q.Skip -= size
			return nil
		}
		l.Text = l.Text[q.Skip:]
		q.Skip = 0
	}
	return r.fn(l)
}

// look opens the files that came since the last look.
func (r *Reader) look() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open()
}

// open is look with r.mu held.
func (r *Reader) open() error {
	fresh, err := segments(r.path, r.newest)
	if err != nil {
		return err
	}
	if len(fresh) == 0 {
		return nil
	}
	r.list = append(r.list, fresh...)
	s := fresh[len(fresh)-1]
	r.newest = s.inode
	if r.inotify == nil {
		return nil
	}
	// By descriptor, because the name may be another file's by now.
	name := fmt.Sprintf("/proc/self/fd/%d", fdOf(s.file))
	if _, err := unix.InotifyAddWatch(fdOf(r.inotify), name, unix.IN_MODIFY); err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	return nil
}

// watch wakes the reader when the log grows, and opens new files at once,
// however slow the reader is. The returned function ends it.
func (r *Reader) watch() (stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	r.inotify = os.NewFile(uintptr(fd), "inotify")
	dir := filepath.Dir(r.path)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "watch", Path: dir, Err: err}, r.inotify.Close())
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		events := make([]byte, 4096)
		for {
			n, err := r.inotify.Read(events)
			if err != nil {
				return
			}
			if created(events[:n]) {
				_ = r.look() // an error comes back when the reader looks
			}
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
	})
	return func() { _ = r.inotify.Close(); wg.Wait() }, nil
}

// created: one of the events is about a name in the directory.
func created(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		size := binary.NativeEndian.Uint32(events[12:])
		if mask&(unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_Q_OVERFLOW) != 0 {
			return true
		}
		events = events[min(len(events), unix.SizeofInotifyEvent+int(size)):]
	}
	return false
}

// fdOf returns the descriptor itself; File.Fd would make it blocking.
func fdOf(f *os.File) int {
	fd := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}
