// Package containertest is what every container.Runtime has to pass.
package containertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// patience bounds the wait for something that is going to happen.
const patience = 20 * time.Second

// Subject is a runtime under test.
type Subject struct {
	Runtime container.Runtime
	// Bundle makes a bundle for the container id that runs args, commands of
	// busybox in /bin, with process 1 in a PID namespace of its own. It is
	// removed with the test.
	Bundle func(t *testing.T, id string, terminal bool, args ...string) (dir string)
	// Process makes the process of an exec.
	Process func(terminal bool, args ...string) *specs.Process
	// Forget drops an ended process.
	Forget func(id string) error
}

// Suite tests the runtime that open makes; exited is to be told of every end.
func Suite(t *testing.T, open func(t *testing.T, exited func(container.Exit)) Subject) {
	for name, test := range map[string]func(*testing.T, *bench){
		"ExitCodes":           exitCodes,
		"Output":              output,
		"MissingCommand":      missingCommand,
		"CreateThenStart":     createThenStart,
		"Kill":                kill,
		"StopSignal":          stopSignal,
		"Stdin":               stdin,
		"Terminal":            terminal,
		"Exec":                execs,
		"ExecMissing":         execMissing,
		"ExecStdin":           execStdin,
		"ExecEndsWithRuntime": execEnds,
		"Pause":               pause,
		"Update":              update,
		"Pids":                pids,
		"Delete":              deletes,
		"Unknown":             unknown,
		"IDAgain":             idAgain,
		"Streams":             streams,
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{t: t, exits: map[string][]container.Exit{}, changed: make(chan struct{})}
			b.Subject = open(t, b.told)
			test(t, b)
		})
	}
}

// bench is one runtime with what it told.
type bench struct {
	Subject
	t *testing.T

	mu      sync.Mutex
	exits   map[string][]container.Exit
	changed chan struct{}
}

func (b *bench) told(x container.Exit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exits[x.ID] = append(b.exits[x.ID], x)
	close(b.changed)
	b.changed = make(chan struct{})
}

// exit waits for the end of a process.
func (b *bench) exit(id string) container.Exit {
	b.t.Helper()
	timeout := time.After(patience)
	for {
		b.mu.Lock()
		got, changed := b.exits[id], b.changed
		b.mu.Unlock()
		if len(got) > 0 {
			return got[0]
		}
		select {
		case <-changed:
		case <-timeout:
			b.t.Fatalf("the end of %s was not told", id)
		}
	}
}

// launch prepares a container that is taken away with the test.
func (b *bench) launch(id string, terminal bool, args ...string) container.Launch {
	b.t.Helper()
	// Suites of several runtimes may run at the same time.
	id = fmt.Sprintf("ct%d-%s-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(b.t.Name()[strings.LastIndexByte(b.t.Name(), '/')+1:], "_", "-")), id)
	b.t.Cleanup(func() {
		if err := b.Runtime.Delete(context.WithoutCancel(b.t.Context()), id); err != nil {
			b.t.Errorf("clean up: %v", err)
		}
	})
	return container.Launch{
		ID:     id,
		Bundle: b.Bundle(b.t, id, terminal, args...),
		TTY:    terminal,
		Log:    container.LogFile{Path: filepath.Join(b.t.TempDir(), "log")},
	}
}

// run starts a container.
func (b *bench) run(args ...string) *container.Process {
	b.t.Helper()
	p, err := b.Runtime.Run(b.t.Context(), b.launch("a", false, args...))
	if err != nil {
		b.t.Fatalf("run %v: %v", args, err)
	}
	return p
}

func (b *bench) kind(want errs.Kind, err error, what string) {
	b.t.Helper()
	if !errors.Is(err, want) {
		b.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func (b *bench) ok(err error, what string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

func exitCodes(t *testing.T, b *bench) {
	for code, args := range map[int][]string{
		0: {"/bin/true"},
		1: {"/bin/false"},
		7: {"/bin/sh", "-c", "exit 7"},
	} {
		l := b.launch(string(rune('a'+code)), false, args...)
		p, err := b.Runtime.Run(t.Context(), l)
		b.ok(err, "run")
		if p.ID != l.ID || p.Pid <= 0 {
			t.Errorf("process %+v of %s", p, l.ID)
		}
		x := b.exit(l.ID)
		if x.Code != code || !x.Known || x.Pid != p.Pid || time.Since(x.At) > patience {
			t.Errorf("%v ended as %+v", args, x)
		}
	}
}

func output(t *testing.T, b *bench) {
	l := b.launch("a", false, "/bin/echo", "one", "two")
	_, err := b.Runtime.Run(t.Context(), l)
	b.ok(err, "run")
	b.exit(l.ID)
	log, err := os.ReadFile(l.Log.Path)
	if err != nil || !strings.HasSuffix(string(log), " stdout F one two\n") {
		t.Errorf("log %q, %v", log, err)
	}
}

func missingCommand(t *testing.T, b *bench) {
	for code, command := range map[int]string{127: "/no/such/command", 126: "/etc"} {
		l := b.launch(string(rune('a'+code%26)), false, command)
		_, err := b.Runtime.Run(t.Context(), l)
		var start *container.StartError
		if !errors.As(err, &start) || start.Code != code {
			t.Errorf("%s: %v, want a StartError with %d", command, err, code)
		}
		_, err = b.Runtime.Pids(t.Context(), l.ID)
		b.kind(errs.NotFound, err, "pids of a container that could not be started")
	}
}

func createThenStart(t *testing.T, b *bench) {
	l := b.launch("a", false, "/bin/sh", "-c", "exit 3")
	_, err := b.Runtime.Create(t.Context(), l)
	b.ok(err, "create")
	b.mu.Lock()
	early := len(b.exits[l.ID])
	b.mu.Unlock()
	if early > 0 {
		t.Error("the process ran before it was started")
	}
	b.ok(b.Runtime.Start(t.Context(), l.ID), "start")
	if x := b.exit(l.ID); x.Code != 3 {
		t.Errorf("ended as %+v", x)
	}
}

func kill(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	b.ok(b.Runtime.Signal(t.Context(), p.ID, syscall.SIGKILL, false), "kill")
	if x := b.exit(p.ID); x.Code != 137 || !x.Known {
		t.Errorf("ended as %+v", x)
	}
	b.kind(errs.NotFound, b.Runtime.Signal(t.Context(), p.ID, syscall.SIGKILL, false), "kill after the end")
}

const waitsForTERM = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"

func stopSignal(t *testing.T, b *bench) {
	p := b.run("/bin/sh", "-c", waitsForTERM)
	timeout := time.After(patience)
	for inRuntime(p.Pid) { // which would die of it
		<-time.After(time.Millisecond)
	}
	for { // a shell heeds the signal once it has come to the trap
		if err := b.Runtime.Signal(t.Context(), p.ID, syscall.SIGTERM, false); !errors.Is(err, errs.NotFound) { // the one before has ended it
			b.ok(err, "signal")
		}
		b.mu.Lock()
		got, changed := b.exits[p.ID], b.changed
		b.mu.Unlock()
		if len(got) > 0 {
			if got[0].Code != 5 {
				t.Errorf("ended as %+v", got[0])
			}
			return
		}
		select {
		case <-changed:
			if x := b.exit(p.ID); x.Code != 5 {
				t.Errorf("ended as %+v", x)
			}
			return
		case <-time.After(100 * time.Millisecond):
		case <-timeout:
			t.Fatal("the signal has no effect")
		}
	}
}

// inRuntime says whether a process is still the runtime's own, about to become
// the container's.
func inRuntime(pid int) bool {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.HasPrefix(string(name), "runc:[")
}

func stdin(t *testing.T, b *bench) {
	l := b.launch("a", false, "/bin/cat")
	l.Stdin = true
	p, err := b.Runtime.Run(t.Context(), l)
	b.ok(err, "run")
	if p.Stdin == nil || p.CloseStdin == nil {
		t.Fatal("there is no stdin")
	}
	_, err = io.WriteString(p.Stdin, "hello\n")
	b.ok(err, "write")
	b.ok(p.CloseStdin(t.Context()), "close stdin")
	if x := b.exit(l.ID); x.Code != 0 {
		t.Errorf("cat ended as %+v", x)
	}
	log, err := os.ReadFile(l.Log.Path)
	if err != nil || !strings.Contains(string(log), " F hello\n") {
		t.Errorf("log %q, %v", log, err)
	}
}

func terminal(t *testing.T, b *bench) {
	l := b.launch("a", true, "/bin/sleep", "1000")
	l.TTY = true
	p, err := b.Runtime.Run(t.Context(), l)
	b.ok(err, "run")
	if r, holds := b.Runtime.(container.Resizer); holds {
		b.ok(r.Resize(t.Context(), p.ID, "", spec.Size{Rows: 30, Cols: 100}), "resize")
		return
	}
	if p.Console == nil || p.Stdin != nil {
		t.Errorf("console %v, stdin %v", p.Console, p.Stdin)
	}
}

func (b *bench) exec(of *container.Process, id string, args ...string) (*container.Process, error) {
	return b.Runtime.Exec(b.t.Context(), container.ExecLaunch{ID: of.ID + id, Container: of.ID, Process: b.Process(false, args...), Stdin: true})
}

func execs(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	e, err := b.exec(p, "-e", "/bin/echo", "from inside")
	b.ok(err, "exec")
	out, err := io.ReadAll(e.Stdout)
	if err != nil || string(out) != "from inside\n" {
		t.Errorf("output %q, %v", out, err)
	}
	if x := b.exit(e.ID); x.Code != 0 {
		t.Errorf("ended as %+v", x)
	}
	e, err = b.exec(p, "-f", "/bin/sh", "-c", "exit 9")
	b.ok(err, "exec")
	if x := b.exit(e.ID); x.Code != 9 {
		t.Errorf("ended as %+v", x)
	}
}

func execMissing(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	_, err := b.exec(p, "-e", "/no/such/command")
	var start *container.StartError
	if !errors.As(err, &start) || start.Code != 127 {
		t.Errorf("%v, want a StartError with 127", err)
	}
}

func execStdin(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	e, err := b.exec(p, "-e", "/bin/cat")
	b.ok(err, "exec")
	read := make(chan string, 1)
	go func() { out, _ := io.ReadAll(e.Stdout); read <- string(out) }()
	_, err = io.WriteString(e.Stdin, "to and fro\n")
	b.ok(err, "write")
	b.ok(e.CloseStdin(t.Context()), "close stdin")
	if x := b.exit(e.ID); x.Code != 0 {
		t.Errorf("ended as %+v", x)
	}
	if out := <-read; out != "to and fro\n" {
		t.Errorf("output %q", out)
	}
}

func execEnds(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	e, err := b.exec(p, "-e", "/bin/sleep", "1000")
	b.ok(err, "exec")
	b.ok(b.Runtime.Signal(t.Context(), p.ID, syscall.SIGKILL, false), "kill")
	if x := b.exit(e.ID); x.Code != 137 {
		t.Errorf("the exec ended as %+v", x)
	}
}

func pause(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	b.ok(b.Runtime.Pause(t.Context(), p.ID), "pause")
	b.ok(b.Runtime.Resume(t.Context(), p.ID), "resume")
	b.ok(b.Runtime.Signal(t.Context(), p.ID, syscall.SIGKILL, false), "kill")
	b.exit(p.ID)
}

func update(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	limit, most := int64(64<<20), int64(50)
	b.ok(b.Runtime.Update(t.Context(), p.ID, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit},
		Pids:   &specs.LinuxPids{Limit: &most},
	}), "update")
}

func pids(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	got, err := b.Runtime.Pids(t.Context(), p.ID)
	b.ok(err, "pids")
	if !slices.Contains(got, p.Pid) {
		t.Errorf("pids %v without %d", got, p.Pid)
	}
}

func deletes(t *testing.T, b *bench) {
	p := b.run("/bin/sleep", "1000")
	b.ok(b.Runtime.Delete(t.Context(), p.ID), "delete a container that runs")
	if x := b.exit(p.ID); x.Code != 137 {
		t.Errorf("ended as %+v", x)
	}
	b.ok(b.Runtime.Delete(t.Context(), p.ID), "delete again")
}

func unknown(t *testing.T, b *bench) {
	ctx, id := t.Context(), "ct-nobody"
	b.kind(errs.NotFound, b.Runtime.Signal(ctx, id, syscall.SIGTERM, false), "signal")
	b.kind(errs.NotFound, b.Runtime.Pause(ctx, id), "pause")
	b.kind(errs.NotFound, b.Runtime.Resume(ctx, id), "resume")
	b.kind(errs.NotFound, b.Runtime.Update(ctx, id, &specs.LinuxResources{}), "update")
	b.kind(errs.NotFound, b.Runtime.Start(ctx, id), "start")
	_, err := b.Runtime.Pids(ctx, id)
	b.kind(errs.NotFound, err, "pids")
	_, err = b.Runtime.Exec(ctx, container.ExecLaunch{ID: "ct-e", Container: id, Process: b.Process(false, "/bin/true")})
	b.kind(errs.NotFound, err, "exec")
	b.ok(b.Runtime.Delete(ctx, id), "delete")
	if v, err := b.Runtime.Version(ctx); err != nil || v == "" {
		t.Errorf("version %q, %v", v, err)
	}
}

// idAgain: a container may be run again under its id once the first run is
// deleted and forgotten.
func idAgain(t *testing.T, b *bench) {
	l := b.launch("a", false, "/bin/true")
	for range 3 {
		_, err := b.Runtime.Run(t.Context(), l)
		b.ok(err, "run")
		b.exit(l.ID)
		b.ok(b.Runtime.Delete(t.Context(), l.ID), "delete")
		b.ok(b.Forget(l.ID), "forget")
		b.mu.Lock()
		delete(b.exits, l.ID)
		b.mu.Unlock()
	}
}

// streams: what a client names takes the place of the log.
func streams(t *testing.T, b *bench) {
	file := func(name string) string { return filepath.Join(t.TempDir(), name) }
	wrote := func(name, want string) { // in a moment: there are runtimes that copy
		t.Helper()
		timeout := time.After(patience)
		for {
			got, err := os.ReadFile(name)
			if err == nil && string(got) == want {
				return
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-timeout:
				t.Fatalf("%s holds %q, %v; want %q", filepath.Base(name), got, err, want)
			}
		}
	}
	l, out := b.launch("a", false, "/bin/echo", "one", "two"), file("out")
	l.Streams, l.Log = &container.Streams{Stdout: "file://" + out, Stderr: "file://" + out}, container.LogFile{}
	_, err := b.Runtime.Create(t.Context(), l)
	b.ok(err, "create")
	b.ok(b.Runtime.Start(t.Context(), l.ID), "start")
	b.exit(l.ID)
	b.ok(b.Runtime.Delete(t.Context(), l.ID), "delete")
	wrote(out, "one two\n")

	l = b.launch("b", false, "/bin/sleep", "1000")
	l.Streams, l.Log = &container.Streams{}, container.LogFile{}
	p, err := b.Runtime.Create(t.Context(), l)
	b.ok(err, "create without a place for the output")
	b.ok(b.Runtime.Start(t.Context(), l.ID), "start")
	out = file("exec")
	e := container.ExecLaunch{
		ID: p.ID + "-e", Container: p.ID, Process: b.Process(false, "/bin/echo", "from inside"), Name: "e",
		Streams: &container.Streams{Stdout: "file://" + out, Stderr: "file://" + out}, // a shim of runc dies of one without the other
	}
	_, err = b.Runtime.Exec(t.Context(), e)
	b.ok(err, "exec")
	b.exit(e.ID)
	b.ok(b.Forget(e.ID), "forget the exec")
	wrote(out, "from inside\n")
}
