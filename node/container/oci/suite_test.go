package oci_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/container/containertest"
	"berth/node/container/oci"
	"berth/node/keeper"
	"berth/spec"
	"berth/test/machine"
)

const keeperVar = "OCI_TEST_KEEPER"

// TestMain lets the test's program be the keeper too.
func TestMain(m *testing.M) {
	if dir := os.Getenv(keeperVar); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := keeper.Serve(context.Background(), keeper.ServeConfig{Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Log: log}); err != nil {
			log.Error("serve", slog.Any("err", err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(machine.Run(m, machine.Empty))
}

// kept is a runtime with a keeper that is a process of its own.
type kept struct {
	*bench
	keeper *keeper.Keeper

	mu    sync.Mutex
	exits map[string]container.Exit
	more  chan struct{}
}

func newKept(t testing.TB, name string, exited func(container.Exit)) *kept {
	t.Helper()
	b := newBench(t, name)
	k := &kept{bench: b, exits: map[string]container.Exit{}, more: make(chan struct{}, 100)}
	var err error
	k.keeper, err = keeper.Open(t.Context(), keeper.Config{
		Socket: b.dir + "/keeper.sock", PidFile: b.dir + "/keeper.pid",
		Command: []string{"/usr/bin/env", keeperVar + "=" + b.dir, os.Args[0]},
		Exited: func(x keeper.Exit) {
			k.mu.Lock()
			k.exits[x.ID] = container.Exit(x)
			k.mu.Unlock()
			k.more <- struct{}{}
			exited(container.Exit(x))
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if b.runtime, err = oci.New(oci.Config{Name: name, State: filepath.Join(b.dir, "runtime"), Keeper: k.keeper}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- k.keeper.Run(ctx) }()
	t.Cleanup(func() {
		err := k.keeper.Shutdown(context.Background(), true)
		cancel()
		if err := errors.Join(err, <-ran, k.keeper.Close()); err != nil {
			t.Error(err)
		}
	})
	return k
}

func (k *kept) wait(id string) container.Exit {
	k.t.Helper()
	limit := time.After(time.Minute)
	for {
		k.mu.Lock()
		x, ended := k.exits[id]
		k.mu.Unlock()
		if ended {
			return x
		}
		select {
		case <-k.more:
		case <-limit:
			k.t.Fatalf("%s does not end", id)
		}
	}
}

func eachKept(t *testing.T, test func(t *testing.T, k *kept)) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) { test(t, newKept(t, name, func(container.Exit) {})) })
	}
}

func TestSuite(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			containertest.Suite(t, func(t *testing.T, exited func(container.Exit)) containertest.Subject {
				k := newKept(t, name, exited)
				return containertest.Subject{
					Runtime: k.runtime,
					Bundle: func(_ *testing.T, id string, terminal bool, args ...string) string {
						return k.make(spec.ContainerConfig{Command: args, TTY: terminal}, func(s *specs.Spec) { s.Linux.CgroupsPath = cgroupOf(id) }).Bundle
					},
					Process: func(terminal bool, args ...string) *specs.Process {
						p := process(args...)
						p.Terminal = terminal
						return p
					},
					Forget: func(id string) error { return k.keeper.Forget(t.Context(), id) },
				}
			})
		})
	}
}

// client makes the FIFOs of a client and reads its output.
func (k *kept) client(id string) (s *container.Streams, in *os.File, out, complaints <-chan string) {
	k.t.Helper()
	s = &container.Streams{Stdin: k.dir + "/" + id + "-stdin", Stdout: k.dir + "/" + id + "-stdout", Stderr: k.dir + "/" + id + "-stderr"}
	for _, path := range []string{s.Stdin, s.Stdout, s.Stderr} {
		if err := unix.Mkfifo(path, 0o700); err != nil {
			k.t.Fatal(err)
		}
	}
	in, err := os.OpenFile(s.Stdin, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = in.Close() })
	read := func(path string) <-chan string {
		said := make(chan string, 1)
		go func() { // it opens when the other side does
			text, err := os.ReadFile(path)
			if err != nil {
				text = []byte(err.Error())
			}
			said <- string(text)
		}()
		return said
	}
	return s, in, read(s.Stdout), read(s.Stderr)
}

func heard(t *testing.T, said <-chan string) string {
	t.Helper()
	select {
	case text := <-said:
		return text
	case <-time.After(time.Minute):
		t.Fatal("the client sees no end")
		return ""
	}
}

// A container and what is executed in it talk to clients' FIFOs, in two steps
// and with a terminal.
func TestGivenStreams(t *testing.T) {
	eachKept(t, func(t *testing.T, k *kept) {
		l := k.make(command("sh", "-c", "echo one; cat; echo bad >&2; exit 7"))
		var in *os.File
		var out, complaints <-chan string
		l.Streams, in, out, complaints = k.client("task")
		p, err := k.runtime.Create(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.runtime.Start(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}

		e := container.ExecLaunch{ID: newID(), Container: l.ID, Process: process("sh", "-c", "read x; echo exec $x; exit 3")}
		var execIn *os.File
		var execOut <-chan string
		e.Streams, execIn, execOut, _ = k.client("exec")
		if _, err := k.runtime.Exec(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(execIn, "here\n")
		if got := heard(t, execOut); got != "exec here\n" {
			t.Errorf("exec said %q", got)
		}
		if x := k.wait(e.ID); x.Code != 3 {
			t.Errorf("exec ended as %+v", x)
		}

		tty := container.ExecLaunch{ID: newID(), Container: l.ID, Process: process("sh", "-c", "read x; test -t 1 && echo terminal $x"), Size: spec.Size{Rows: 20, Cols: 70}}
		tty.Process.Terminal = true
		tty.Streams, execIn, execOut, _ = k.client("tty")
		shown, err := k.runtime.Exec(t.Context(), tty)
		if err != nil {
			t.Fatal(err)
		}
		if shown.Console == nil {
			t.Error("there is no terminal to resize")
		}
		_, _ = io.WriteString(execIn, "too\n")
		if got := heard(t, execOut); !strings.HasSuffix(got, "terminal too\r\n") {
			t.Errorf("the terminal showed %q", got)
		}
		k.wait(tty.ID)

		_, _ = io.WriteString(in, "two\n")
		_ = in.Close()
		if err := p.CloseStdin(t.Context()); err != nil {
			t.Error(err)
		}
		if got := heard(t, out) + heard(t, complaints); got != "one\ntwo\nbad\n" {
			t.Errorf("it said %q", got)
		}
		if x := k.wait(l.ID); x.Code != 7 || x.Pid != p.Pid {
			t.Errorf("ended as %+v", x)
		}
	})
}

// What fails before the process runs leaves nothing, whoever failed.
func TestGivenStreamsFail(t *testing.T) {
	eachKept(t, func(t *testing.T, k *kept) {
		for _, tt := range []struct {
			streams container.Streams
			args    string
			kind    errs.Kind
		}{
			{container.Streams{Stdout: k.dir + "/nothere"}, "true", errs.NotFound},
			{container.Streams{Stdout: "binary:///no/such/logger"}, "true", errs.NotFound},
			{container.Streams{Stdout: "gopher:///x"}, "true", errs.Invalid},
			{container.Streams{Stdout: "file://" + k.dir + "/log"}, "nothere", errs.NotFound},
		} {
			l := k.make(command(tt.args))
			l.Streams = &tt.streams
			if _, err := k.runtime.Create(t.Context(), l); !errors.Is(err, tt.kind) {
				t.Errorf("%+v: %v (%s)", tt.streams, err, errs.KindOf(err))
			}
			k.nothingLeft(l.ID)
			if n := len(k.keeper.Processes()); n > 0 {
				t.Errorf("the keeper has %d processes", n)
			}
		}
	})
}
