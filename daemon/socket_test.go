package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth/base/group"
)

// Who serves is told to end when nobody is let in any more, so that nobody is
// let in and not answered.
func TestDoorIsShutFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "door.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	serve := func(ctx context.Context, _ net.Listener) error {
		<-ctx.Done()
		if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("somebody is let in whom nobody serves: %v", err)
		}
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := group.New(ctx)
	g.Go("door", func(ctx context.Context) error { return newDoor(listener).run(ctx, serve, serve) })
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// systemd's sockets come as descriptors from 3 on, to the process that it names.
func TestActivated(t *testing.T) {
	if path := os.Getenv("TEST_ACTIVATED"); path != "" {
		listener, err := activated(path)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := activated(path); again != nil || err != nil || os.Getenv("LISTEN_FDS") != "" {
			t.Errorf("another process would have it too: %v, %v", again, err)
		}
		if listener == nil {
			t.Log("nothing came")
			return
		}
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("hello"))
		_ = conn.Close()
		return
	}
	path := filepath.Join(t.TempDir(), "berth.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("unix", path) // before anybody is there
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for _, c := range []struct {
		what, pid, path, says string
		of                    interface{ File() (*os.File, error) }
	}{
		{"of another process", "1", path, "nothing came", listener},
		{"at another path", "$$", path + "2", "is to answer on", listener},
		{"of TCP", "$$", path, "is no unix socket", tcp.(*net.TCPListener)},
		{"its own", "$$", path, "PASS", listener},
	} {
		file, err := c.of.File()
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		process, err := os.StartProcess("/bin/sh", []string{"sh", "-c", `LISTEN_PID=` + c.pid + ` exec "$0" -test.v -test.run '^TestActivated$'`, os.Args[0]}, &os.ProcAttr{
			Env: append(os.Environ(), "LISTEN_FDS=1", "TEST_ACTIVATED="+c.path), Files: []*os.File{nil, out, out, file},
		})
		if err == nil {
			_, err = process.Wait()
		}
		said, _ := os.ReadFile(out.Name())
		if err != nil || !strings.Contains(string(said), c.says) {
			t.Errorf("%s: %v, %s", c.what, err, said)
		}
		_, _ = file.Close(), out.Close()
	}
	text := make([]byte, 5)
	if n, err := conn.Read(text); string(text[:n]) != "hello" {
		t.Errorf("read %q, %v", text[:n], err)
	}
}

func TestByHand(t *testing.T) {
	for sig, want := range map[os.Signal]bool{syscall.SIGINT: true, syscall.SIGTERM: false} {
		ctx, stop := signal.NotifyContext(t.Context(), sig)
		if err := syscall.Kill(os.Getpid(), sig.(syscall.Signal)); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		g := group.New(ctx)
		g.Go("part", func(ctx context.Context) error {
			if got := isByHand(ctx); got != want {
				t.Errorf("ended by %v: by hand is %v", sig, got)
			}
			return nil
		})
		_ = g.Wait()
		stop()
	}
}
