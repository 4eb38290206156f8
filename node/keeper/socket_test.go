package keeper_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bind listens at a path, as a node does.
func bind(t *testing.T, path string) *os.File {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// holdSocket listens at a path, has it held, and keeps nothing of it.
func (r *rig) holdSocket(path string) {
	r.t.Helper()
	file := bind(r.t.(*testing.T), path)
	defer file.Close()
	if err := r.HoldSocket(r.t.Context(), path, file); err != nil {
		r.t.Fatal(err)
	}
}

// take takes the socket of path, which has to be there.
func (r *rig) take(path string) net.Listener {
	r.t.Helper()
	file, err := r.TakeSocket(r.t.Context(), path)
	if err != nil || file == nil {
		r.t.Fatalf("nothing is held for %s: %v", path, err)
	}
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { listener.Close() })
	return listener
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// closes fails unless who waits on conn hears that nobody comes, and who comes
// to path finds nothing.
func closes(t *testing.T, path string, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("who waits has read %d bytes, %v", n, err)
	}
	if _, err := net.Dial("unix", path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("who comes later: %v", err)
	}
}

// Whoever comes while there is no node is answered by the next, in turn, even
// if the keeper has died or become another program meanwhile; who has gone
// again is no trouble.
func TestSocketIsTakenOver(t *testing.T) {
	r := start(t)
	path := filepath.Join(r.dir, "door")
	r.holdSocket(path)
	before := r.Pid()
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return r.Pid() != 0 && r.Pid() != before })
	if err := r.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.stop()
	dial(t, path).Close()
	patient := dial(t, path)
	if _, err := patient.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}

	next := open(t, r.dir)
	listener := next.take(path)
	for _, want := range []string{"", "hello"} {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		text := make([]byte, 5)
		n, err := conn.Read(text)
		if string(text[:n]) != want || (want == "") != errors.Is(err, io.EOF) {
			t.Errorf("read %q, %v, want %q", text[:n], err, want)
		}
		conn.Close()
	}
	// Nobody but the node ends it from here on.
	last := dial(t, path)
	if err := next.DropSocket(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	listener.Close()
	closes(t, path, last)
	if file, err := next.TakeSocket(t.Context(), path); file != nil || err != nil {
		t.Errorf("after the drop there is %v, %v", file, err)
	}
}

// A node that does not come back is waited for as long as Linger says, no
// longer, be it that others come and go which do not serve.
func TestSocketIsGivenUp(t *testing.T) {
	t.Setenv("KEEPER_TEST_LINGER", "1s")
	t.Run("with processes", func(t *testing.T) {
		r := start(t)
		r.launch(r.script("a", `exec sleep 1000`))
		path := filepath.Join(r.dir, "door")
		r.holdSocket(path)
		keeper := r.Pid()
		r.stop()
		conn := dial(t, path)
		for {
			if _, err := os.Lstat(path); err != nil {
				break
			}
			idle := open(t, r.dir)
			idle.stop()
		}
		closes(t, path, conn)
		next := open(t, r.dir)
		if next.Pid() != keeper {
			t.Error("the keeper has gone")
		}
		if file, err := next.TakeSocket(t.Context(), path); file != nil || err != nil {
			t.Errorf("there is %v, %v", file, err)
		}
		next.holdSocket(path) // and from the beginning
		next.stop()
		closes(t, path, dial(t, path))
	})
	t.Run("without", func(t *testing.T) {
		r := start(t)
		path := filepath.Join(r.dir, "door")
		r.holdSocket(path)
		r.stop()
		closes(t, path, dial(t, path))
	})
	t.Run("a keeper that is told to end", func(t *testing.T) {
		t.Setenv("KEEPER_TEST_LINGER", "1h")
		r := start(t)
		path := filepath.Join(r.dir, "door")
		r.holdSocket(path)
		pid := r.Pid()
		r.stop()
		conn := dial(t, path)
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		closes(t, path, conn)
	})
}

// A path that is somebody else's by now stays, and is not taken for the node's.
func TestSocketOfSomebodyElse(t *testing.T) {
	t.Setenv("KEEPER_TEST_LINGER", "1s")
	r := start(t)
	path := filepath.Join(r.dir, "door")
	usurp := func() *os.File {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return bind(t, path)
	}
	r.holdSocket(path)
	waits := dial(t, path)
	other := usurp()
	defer other.Close()
	if file, err := r.TakeSocket(t.Context(), path); file != nil || err != nil {
		t.Fatalf("another's socket: %v, %v", file, err)
	}
	if _, err := waits.Read(make([]byte, 1)); err == nil {
		t.Error("who waits is answered")
	}
	dial(t, path)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.holdSocket(path)
	waits = dial(t, path)
	another := usurp()
	defer another.Close()
	r.stop()
	_, _ = waits.Read(make([]byte, 1)) // the keeper gives it up
	dial(t, path)
}

// A node that is given another path lets go of the first.
func TestSocketElsewhere(t *testing.T) {
	r := start(t)
	old := filepath.Join(r.dir, "old")
	r.holdSocket(old)
	r.stop()
	conn := dial(t, old)
	next := open(t, r.dir)
	if file, err := next.TakeSocket(t.Context(), filepath.Join(r.dir, "new")); file != nil || err != nil {
		t.Errorf("there is %v, %v", file, err)
	}
	closes(t, old, conn)
}

// A node of a time before sockets would find another node at its own: it is
// told of none.
func TestSocketBeforeOlderNode(t *testing.T) {
	r := start(t)
	r.launch(r.script("a", `exec sleep 1000`))
	path := filepath.Join(r.dir, "door")
	r.holdSocket(path)
	r.stop()
	conn := dial(t, path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: r.dir + "/keeper.sock"}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte(`{"n":1,"op":"hello","protocol":1}`)); err != nil {
		t.Fatal(err)
	}
	closes(t, path, conn)
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	next := open(t, r.dir)
	if file, err := next.TakeSocket(t.Context(), path); file != nil || err != nil {
		t.Errorf("there is %v, %v", file, err)
	}
}
