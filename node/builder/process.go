package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

const (
	// startLimit is how long buildkitd may take until it serves.
	startLimit = 30 * time.Second
	// endLimit is how long it may take to end once it is told to.
	endLimit = 10 * time.Second
	// logLimit is what the file of its words may have before another is begun.
	logLimit = 1 << 20
)

// process is a buildkitd.
type process struct {
	pid     int
	started time.Time
	pidfd   *os.File
	child   bool          // of this node
	over    chan struct{} // closed when it has ended
}

func (p *process) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

// ours says whether it has inherited the socket of this node.
func (p *process) ours() bool { return p.child }

// release lets go of it, whether it runs or not.
func (p *process) release() { _ = p.pidfd.Close() }

// signal reaches what it was, never another process that has its number now.
func (p *process) signal(sig unix.Signal) {
	conn, err := p.pidfd.SyscallConn()
	if err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	}
}

// await waits until the process has ended, or is released.
func (p *process) await() {
	if readable(p.pidfd) == nil {
		close(p.over)
	}
}

// end asks the process to end, and kills it and what it started if it does
// not soon.
func (p *process) end(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	p.signal(unix.SIGTERM)
	patience, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	select {
	case <-p.over:
		return nil
	case <-patience.Done():
	}
	_ = unix.Kill(-p.pid, unix.SIGKILL) // it has not ended, so that its number is its own
	patience, cancel = context.WithTimeout(ctx, endLimit)
	defer cancel()
	select {
	case <-p.over:
		return nil
	case <-patience.Done():
		return errs.New(errs.Timeout, "buildkitd, process %d, does not end", p.pid)
	}
}

// find is the buildkitd that an earlier node started, nil if there is none.
func (b *Builder) find() (*process, error) {
	for _, pid := range b.candidates() {
		p, err := open(pid)
		if err != nil {
			continue // it has ended
		}
		if !b.isOurs(pid) {
			p.release() // another process has its number now
			continue
		}
		b.work.Go(func() { p.await(); b.nudge() })
		return p, nil
	}
	return nil, nil //nolint:nilnil // there is none
}

// candidates are the process that the file of its pid names; without one all
// there are, where something says that buildkitd was not ended in order.
func (b *Builder) candidates() []int {
	text, err := os.ReadFile(b.pidFile())
	if pid, _ := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
		return []int{pid}
	}
	if _, err := os.Stat(filepath.Join(b.Dir, "buildkitd.lock")); err != nil {
		return nil
	}
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if pid, _ := strconv.Atoi(filepath.Base(dir)); pid > 1 && b.isOurs(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isOurs says whether a process was started with our settings.
func (b *Builder) isOurs(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(line, []byte("\x00"+b.settingsPath()+"\x00"))
}

func open(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &process{pid: pid, started: time.Now(), pidfd: os.NewFile(uintptr(fd), "pidfd"), over: make(chan struct{})}, nil
}

// ensure starts buildkitd unless it runs.
func (b *Builder) ensure(ctx context.Context) error {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.touch()
	if b.running() != nil {
		return nil
	}
	b.mu.Lock()
	ended := b.process
	b.mu.Unlock()
	if ended != nil {
		b.settle(ctx, ended)
	}
	programs, err := b.programs()
	if err != nil {
		return err
	}
	p, err := b.start(ctx, programs.server)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.process, b.used = p, time.Now()
	b.mu.Unlock()
	b.nudge()
	b.Log.InfoContext(ctx, "buildkitd runs", "pid", p.pid, "program", programs.server)
	return nil
}

// start runs buildkitd until it serves. turn is held.
func (b *Builder) start(ctx context.Context, program string) (p *process, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := os.MkdirAll(b.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	settings, err := b.writeSettings()
	if err != nil {
		return nil, err
	}
	ready, err := b.expect()
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	defer ready.close()
	if p, err = b.spawn(ctx, program, settings, ready); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	if err := ready.wait(ctx, p); err != nil {
		_ = p.end(ctx)
		p.release()
		_ = os.Remove(b.pidFile())
		return nil, errs.New(errs.Unavailable, "buildkitd does not start: %w\n%ssee %s", err, lastWords(b.logPath()), b.logPath())
	}
	return p, nil
}

// spawn runs the program with the socket as its descriptor 3, as systemd does.
func (b *Builder) spawn(ctx context.Context, program, settings string, ready *readiness) (*process, error) {
	b.mu.Lock()
	door := b.door
	b.mu.Unlock()
	if door == nil {
		return nil, errs.New(errs.Unavailable, "there is no socket for its clients")
	}
	log, err := b.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// The shell knows the number that the process will have.
	const script = `LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@"`
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", script, program, "--config", settings)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{door}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+ready.path, "PATH="+searchPath(program))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p, err := open(cmd.Process.Pid) // nobody has reaped it yet
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	p.child = true
	// It is waited for when it has ended, or else with this node: then it is
	// somebody else's.
	b.work.Go(func() {
		p.await()
		if p.isOver() {
			_ = cmd.Wait()
		}
		b.nudge()
	})
	return p, os.WriteFile(b.pidFile(), []byte(strconv.Itoa(p.pid)+"\n"), 0o644) //nolint:gosec // for anybody to read
}

// searchPath has the folder of the program, where its companions may be, and
// those of the system, where git is.
func searchPath(program string) string {
	return filepath.Dir(program) + ":" + os.Getenv("PATH") + ":/usr/sbin:/usr/bin:/sbin:/bin"
}

// openLog opens the file of buildkitd's words. It begins another when the last
// is long.
func (b *Builder) openLog() (*os.File, error) {
	if info, err := os.Stat(b.logPath()); err == nil && info.Size() > logLimit {
		if err := os.Rename(b.logPath(), b.logPath()+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(b.logPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
}

// lastWords are the last lines of a file.
func lastWords(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.SplitAfter(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "") + "\n"
}
