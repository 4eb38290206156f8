package machine

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Daemon is a program in the background.
type Daemon struct {
	Argv, Env []string     // Env is besides that of the tests
	Files     []*os.File   // its descriptors from 3 on
	Log       string       // a file that it writes to
	Socket    string       // that it answers on
	Ready     func() error // why it cannot be used yet; nil: who connects can use it

	process *exec.Cmd
	ended   chan struct{}
}

// Start runs the program until it can be used.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	Must(t, err)
	defer log.Close()
	process, ended := exec.Command(d.Argv[0], d.Argv[1:]...), make(chan struct{})
	process.Env = append(os.Environ(), d.Env...)
	process.Stdout, process.Stderr, process.ExtraFiles = log, log, d.Files
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	Must(t, process.Start())
	d.process, d.ended = process, ended
	go func() { _ = process.Wait(); close(ended) }()
	ready := d.Ready
	if ready == nil {
		ready = d.connect
	}
	Until(t, filepath.Base(d.Argv[0])+" answers", func() error {
		select {
		case <-ended:
			t.Fatalf("%s ended: %s\n%s", d.Argv[0], process.ProcessState, d.Says())
		default:
		}
		return ready()
	})
}

func (d *Daemon) connect() error {
	conn, err := net.Dial("unix", d.Socket)
	if err == nil {
		err = conn.Close()
	}
	return err
}

// Runs says whether it was started and not ended since, by this.
func (d *Daemon) Runs() bool { return d.process != nil }

// Pid is that of the program; it has to run.
func (d *Daemon) Pid() int { return d.process.Process.Pid }

// Signal asks the program for something.
func (d *Daemon) Signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := d.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %s: %v", d.Argv[0], err)
	}
}

// Ended is closed when the program has ended.
func (d *Daemon) Ended() <-chan struct{} { return d.ended }

// Kill ends the program without giving it a chance.
func (d *Daemon) Kill() {
	if d.process == nil {
		return
	}
	_ = d.process.Process.Kill()
	<-d.ended
	d.process = nil
}

// End ends the program as one should, and returns how it ended.
func (d *Daemon) End(t testing.TB) *os.ProcessState {
	t.Helper()
	if d.process == nil {
		return nil
	}
	d.Signal(t, syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.Signal(t, syscall.SIGQUIT) // it says where it hangs
		<-d.ended
		t.Errorf("%s did not end within %v of TERM:\n%s", d.Argv[0], patience, d.Says())
	}
	state := d.process.ProcessState
	d.process = nil
	return state
}

// Says is the end of the program's log.
func (d *Daemon) Says() string { return tail(d.Log, 8000) }

func tail(file string, size int) string {
	text, _ := os.ReadFile(file)
	return string(text[max(0, len(text)-size):])
}
