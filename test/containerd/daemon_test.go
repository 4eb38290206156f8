package containerd

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

// daemon is a program in the background that answers on a socket. The end of
// its log is shown if the test fails.
type daemon struct {
	argv, env []string
	socket    string
	log       string // a file
	cmd       *exec.Cmd
	ended     chan struct{}
}

func (d *daemon) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	must(t, d.cmd.Start())
	d.ended = make(chan struct{})
	go func() { _ = d.cmd.Wait(); close(d.ended) }()
	until(t, filepath.Base(d.argv[0])+" answers", func() bool {
		select {
		case <-d.ended:
			t.Fatalf("%s ended: %s\n%s", d.argv[0], d.cmd.ProcessState, d.says())
		default:
		}
		conn, err := net.Dial("unix", d.socket)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// end sends the signal and waits for the end.
func (d *daemon) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %s: %v", d.argv[0], err)
	}
	select {
	case <-d.ended:
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // it says where it hangs
		<-d.ended
		t.Errorf("%s did not end within 20 s of signal %d:\n%s", d.argv[0], signal, d.says())
	}
	d.cmd = nil
}

func (d *daemon) says() string {
	text, _ := os.ReadFile(d.log)
	return string(text[max(0, len(text)-8000):])
}
