package shim

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/container"
	"berth/node/logfile"
)

// lastWords is how long an end waits for the output that came before it. What
// holds it up is a process that outlives the container's first.
const lastWords = 2 * time.Second

// pipes are the streams of a process whose client named none: FIFOs between
// the shim and the node.
type pipes struct {
	streams container.Streams
	held    []*os.File // both ends, while the shim has not opened them; then the one where stdin is read
	in      *os.File
	out     *os.File
	err     *os.File

	log    *logfile.Writer
	logMu  sync.Mutex
	copies sync.WaitGroup
	copied chan struct{} // closed when all output is in the log; nil without one
}

// newPipes makes FIFOs in dir.
func newPipes(dir string, stdin, terminal bool) (*pipes, error) {
	p := &pipes{streams: ownStreams(dir, stdin, terminal)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	for _, path := range []string{p.streams.Stdin, p.streams.Stdout, p.streams.Stderr} {
		if path == "" {
			continue
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("streams: %s: %w", path, err), p.unhold())
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("streams: %w", err), p.unhold())
		}
		p.held = append(p.held, f)
	}
	return p, nil
}

func ownStreams(dir string, stdin, terminal bool) container.Streams {
	s := container.Streams{Stdout: filepath.Join(dir, "stdout")}
	if stdin {
		s.Stdin = filepath.Join(dir, "stdin")
	}
	if !terminal {
		s.Stderr = filepath.Join(dir, "stderr")
	}
	return s
}

// attach takes the node's ends, now that the shim has its own: from here on
// the shim's letting go is seen as an end.
func (p *pipes) attach() error {
	open := func(path string, flags int) (*os.File, error) {
		if path == "" {
			return nil, nil
		}
		return os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	}
	var failed [3]error
	p.out, failed[0] = open(p.streams.Stdout, os.O_RDONLY)
	p.err, failed[1] = open(p.streams.Stderr, os.O_RDONLY)
	p.in, failed[2] = open(p.streams.Stdin, os.O_WRONLY)
	if errors.Is(failed[2], unix.ENXIO) { // nobody reads it any more
		failed[2] = nil
	}
	var reader *os.File
	if p.in != nil { // a shim may open its end only after it has answered
		var err error
		reader, err = open(p.streams.Stdin, os.O_RDONLY)
		failed[2] = errors.Join(failed[2], err)
	}
	if err := errors.Join(failed[:]...); err != nil {
		return fmt.Errorf("streams: %w", err)
	}
	err := p.unhold()
	if reader != nil {
		p.held = []*os.File{reader}
	}
	return err
}

func (p *pipes) unhold() error {
	var failed error
	for _, f := range p.held {
		failed = errors.Join(failed, f.Close())
	}
	p.held = nil
	return failed
}

// copyTo writes all output to a log.
func (p *pipes) copyTo(l container.LogFile, say *slog.Logger) error {
	w, err := logfile.OpenWriter(l.Path, l.MaxSize, l.MaxFiles)
	if err != nil {
		return fmt.Errorf("streams: %w", err)
	}
	p.log, p.copied = w, make(chan struct{})
	var left atomic.Int32
	for stream, f := range map[logfile.Stream]*os.File{logfile.Stdout: p.out, logfile.Stderr: p.err} {
		if f == nil {
			continue
		}
		left.Add(1)
		defer p.copies.Go(func() {
			if _, err := io.Copy(lines{p, stream}, f); err != nil && !errors.Is(err, os.ErrClosed) {
				say.Error("cannot log output", "file", l.Path, "error", err)
				_, _ = io.Copy(io.Discard, f) // nobody stands still for that
			}
			if left.Add(-1) == 0 {
				close(p.copied)
			}
		})
	}
	return nil
}

// lines writes one stream to the log.
type lines struct {
	*pipes
	stream logfile.Stream
}

func (l lines) Write(text []byte) (int, error) {
	l.logMu.Lock()
	defer l.logMu.Unlock()
	for written := 0; written < len(text); {
		records, taken := logfile.Append(nil, l.log.Room(64<<10), time.Now(), l.stream, text[written:])
		if err := errors.Join(l.log.Reserve(len(records)), l.log.Write(records)); err != nil {
			return written, err
		}
		written += taken
	}
	return len(text), nil
}

// drain waits until all output is in the log.
func (p *pipes) drain() {
	if p.copied == nil {
		return
	}
	patience := time.NewTimer(lastWords)
	defer patience.Stop()
	select {
	case <-p.copied:
	case <-patience.C:
	}
}

// output is the node's end of a process's output. After Close what still comes
// is thrown away, so that the process does not stand still.
type output struct {
	*os.File
	closed func()
}

func (o output) Close() error {
	o.closed()
	return nil
}

// output makes a reader of one stream; the pipes go on to own the file.
func (p *pipes) output(f *os.File) io.ReadCloser {
	if f == nil {
		return nil
	}
	return output{f, sync.OnceFunc(func() { p.copies.Go(func() { _, _ = io.Copy(io.Discard, f) }) })}
}

// close lets go of the node's ends.
func (p *pipes) close() {
	_ = p.unhold()
	for _, f := range []*os.File{p.in, p.out, p.err} {
		if f != nil {
			_ = f.Close()
		}
	}
	p.copies.Wait()
	p.logMu.Lock()
	defer p.logMu.Unlock()
	if p.log != nil {
		_ = p.log.Close()
		p.log = nil
	}
}
