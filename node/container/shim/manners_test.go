package shim_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/container/shim"
)

// fake gives the runtime of a shim with manners.
func (b *bench) fake(manners string) *shim.Runtime {
	b.t.Helper()
	self, err := os.Executable()
	b.ok(err, "own program")
	return b.runtime(b.put(manners, self))
}

// short are limits for shims that do not answer.
func short(c *shim.Config) {
	c.Limits = shim.Limits{
		Start: 2 * time.Second, Create: time.Second, Call: time.Second,
		Kill: time.Second, Shutdown: time.Second, Cleanup: 2 * time.Second,
	}
}

// brisk are limits for shims that answer, but for their end.
func brisk(c *shim.Config) { c.Limits = shim.Limits{Shutdown: time.Second, Cleanup: 3 * time.Second} }

// Shims that answer in any of the ways that there are.
func TestAnswers(t *testing.T) {
	for _, manners := range []string{"plain", "json", "good", "downgrades", "holds", "stays", "lies"} {
		t.Run(manners, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, brisk)
			r := b.fake(manners)
			if version, err := r.Version(t.Context()); err != nil || version != "v1.2.3" {
				t.Errorf("version %q, %v", version, err)
			}
			l := b.launch(r, "a", command("sh", "-c", "exit 6"))
			p := b.run(r, l)
			if x := b.exit("a"); x.Code != 6 || !x.Known || x.Pid != p.Pid {
				t.Errorf("ended as %+v", x)
			}
			b.ok(r.Delete(t.Context(), "a"), "delete")
			b.ok(r.Delete(t.Context(), "a"), "delete again")
			b.noShims()
			b.cleaned("a")
		})
	}
}

// cleaned looks whether the command delete was run.
func (b *bench) cleaned(id string) {
	b.t.Helper()
	if _, err := os.Stat(filepath.Join(b.dir, "containers", id, "cleaned")); err != nil {
		b.t.Errorf("the command delete was not run: %v", err)
	}
}

// Shims that cannot make a container: the error says why, and nothing is left.
func TestRefusals(t *testing.T) {
	for manners, want := range map[string]struct {
		kind errs.Kind
		text string
	}{
		"fails":         {errs.Internal, "no such device"},
		"silent":        {errs.Internal, "did not say where it listens"},
		"floods":        {errs.Timeout, "took too long"},
		"hangs":         {errs.Timeout, "took too long"},
		"garbles":       {errs.Internal, "no address in what the shim said"},
		"absent":        {errs.Unavailable, "does not listen"},
		"future":        {errs.Unsupported, "version 9"},
		"grpc":          {errs.Unsupported, "only ttrpc"},
		"mute":          {errs.Timeout, "does not answer"},
		"babbles":       {"", "shim"},
		"create-hangs":  {errs.Timeout, "does not answer: create"},
		"create-dies":   {errs.Unavailable, "the shim is gone: create"},
		"create-fails":  {errs.Internal, "it did not work"},
		"connect-dies":  {errs.Unavailable, "the shim is gone"},
		"start-hangs":   {errs.Timeout, "does not answer: start"},
		"start-dies":    {errs.Unavailable, "the shim is gone: start"},
		"start-fails":   {errs.Internal, "it did not work"},
		"connect-fails": {"", ""}, // it only does not say who it is
	} {
		t.Run(manners, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, short)
			r := b.fake(manners)
			l := b.launch(r, "a", command("sleep", "1000"))
			begin := time.Now()
			_, err := r.Run(t.Context(), l)
			if want.text == "" {
				b.ok(err, "run")
				return
			}
			if err == nil || !strings.Contains(err.Error(), want.text) || want.kind != "" && errs.KindOf(err) != want.kind {
				t.Errorf("%v (%s), want %q (%s)", err, errs.KindOf(err), want.text, want.kind)
			}
			if start, ok := errors.AsType[*container.StartError](err); want.kind == errs.Internal && (!ok || start.Code != 128) {
				t.Errorf("%v, want a StartError", err)
			}
			if took := time.Since(begin); took > time.Minute {
				t.Errorf("it took %s", took)
			}
			if b.driver.Has("a") || b.exitsOf("a") != 0 {
				t.Error("it is known all the same")
			}
			b.noShims()
			b.nothingLeft("a")
			b.nobody("a")
			if left, _ := filepath.Glob(filepath.Join(b.config.State, "shim/.record/*")); len(left) > 0 {
				t.Errorf("records are left: %v", left)
			}
			_, err = r.Pids(t.Context(), "a")
			if !errors.Is(err, errs.NotFound) {
				t.Errorf("pids: %v", err)
			}
		})
	}
}

// nobody looks whether the process of a container of a fake is gone.
func (b *bench) nobody(id string) {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, "containers", id, "pid"))
	if err != nil {
		return
	}
	await(b.t, "the process to be gone", func() bool { return zombie(atoi(string(data))) })
}

// Shims that stop answering later: what is asked fails in time, and Delete
// takes all away.
func TestHangs(t *testing.T) {
	for _, manners := range []string{"kill-hangs", "delete-hangs", "state-hangs", "shutdown-hangs", "wait-hangs", "delete-fails", "unclean"} {
		t.Run(manners, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, short)
			r := b.fake(manners)
			b.run(r, b.launch(r, "a", command("sleep", "1000")))
			err := r.Signal(t.Context(), "a", syscall.SIGTERM, false)
			if manners == "kill-hangs" != errors.Is(err, errs.Timeout) {
				t.Errorf("signal: %v", err)
			}
			b.ok(r.Delete(t.Context(), "a"), "delete")
			if x := b.exit("a"); x.Known && x.Code != 143 && x.Code != 137 || !x.Known && x.Code != 255 {
				t.Errorf("ended as %+v", x)
			}
			b.noShims()
			b.nobody("a")
		})
	}
}

// still says whether no thread of a process runs.
func still(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return err == nil && len(threads) > 0 && !slices.ContainsFunc(threads, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && !bytes.Contains(text, []byte(") T "))
	})
}

// A shim that stands still is as one that hangs.
func TestStopped(t *testing.T) {
	b := newBench(t, short)
	r := b.fake("good")
	b.run(r, b.launch(r, "a", command("sleep", "1000")))
	pid := b.shims()[0]
	b.ok(syscall.Kill(pid, syscall.SIGSTOP), "stop")
	await(t, "all of its threads to stand still", func() bool { return still(pid) })
	if err := r.Signal(t.Context(), "a", syscall.SIGTERM, false); !errors.Is(err, errs.Timeout) {
		t.Errorf("signal: %v", err)
	}
	b.stop()
	found := b.open() // a node that starts is not held up
	if len(found) != 1 || found[0].Exit != nil {
		t.Errorf("survivors %+v", found)
	}
	r = b.runtime(r.Name())
	b.ok(r.Delete(t.Context(), "a"), "delete")
	if x := b.exit("a"); x.Known || x.Code != 255 {
		t.Errorf("ended as %+v", x)
	}
	b.noShims()
	b.nobody("a")
	b.cleaned("a")
}

// A shim that is killed has taken its containers along, and their ends are
// not known, but for those that it noted.
func TestKilled(t *testing.T) {
	for manners, want := range map[string]container.Exit{
		"good":    {Code: 255},
		"notes":   {Code: 3, Known: true},
		"unclean": {Code: 255},
	} {
		t.Run(manners, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, brisk)
			r := b.fake(manners)
			b.run(r, b.launch(r, "a", command("sleep", "1000")))
			b.ok(syscall.Kill(b.shims()[0], syscall.SIGKILL), "kill")
			if x := b.exit("a"); x.Known != want.Known || x.Code != want.Code {
				t.Errorf("ended as %+v", x)
			}
			if err := r.Signal(t.Context(), "a", syscall.SIGTERM, false); !errors.Is(err, errs.NotFound) {
				t.Errorf("signal: %v", err)
			}
			b.nobody("a")
			b.ok(r.Delete(t.Context(), "a"), "delete")
			b.noShims()
			if b.exitsOf("a") != 1 {
				t.Errorf("its end was told %d times", b.exitsOf("a"))
			}
		})
	}
}

// A shim that died while no node ran.
func TestDiedUnseen(t *testing.T) {
	b := newBench(t, brisk)
	r := b.fake("good")
	for _, id := range []string{"a", "b"} {
		b.run(r, b.launch(r, id, command("sleep", "1000")))
	}
	b.stop()
	for _, pid := range b.shims() {
		b.ok(syscall.Kill(pid, syscall.SIGKILL), "kill")
	}
	found := b.open()
	if len(found) != 2 {
		t.Fatalf("survivors %+v", found)
	}
	for _, v := range found {
		if v.Exit == nil || v.Exit.Known || v.Exit.Code != 255 {
			t.Errorf("survivor %+v", v)
		}
		b.nobody(v.Process.ID)
		b.cleaned(v.Process.ID)
		b.ok(b.runtime(r.Name()).Delete(t.Context(), v.Process.ID), "delete")
		b.ok(b.driver.Forget(t.Context(), v.Process.ID), "forget")
		if b.exitsOf(v.Process.ID) != 0 {
			t.Error("what Survivors tells is told again")
		}
	}
	b.noShims()
}

// What a node left half made is taken away by the next.
func TestHalfMade(t *testing.T) {
	b := newBench(t, brisk)
	r := b.fake("good")
	b.run(r, b.launch(r, "a", command("sleep", "1000")))
	b.stop()
	record := filepath.Join(b.config.State, "shim/.record/a.json")
	data, err := os.ReadFile(record)
	b.ok(err, "read")
	b.ok(os.WriteFile(record, []byte(strings.Replace(string(data), `"made":true`, `"made":false`, 1)), 0o600), "write")
	b.ok(os.WriteFile(filepath.Join(filepath.Dir(record), "torn.json"), []byte(`{"id":"to`), 0o600), "write")
	if found := b.open(); len(found) != 0 {
		t.Errorf("survivors %+v", found)
	}
	if left, _ := filepath.Glob(filepath.Join(b.config.State, "shim/.record/*")); len(left) > 0 {
		t.Errorf("records are left: %v", left)
	}
	b.noShims()
	b.nobody("a")
}

func TestFind(t *testing.T) {
	b := newBench(t)
	self, err := os.Executable()
	b.ok(err, "own program")
	b.install("good", self)
	for name, want := range map[string]struct {
		path string
		kind errs.Kind
	}{
		"io.containerd.good.v1": {path: filepath.Join(b.dir, "bin/containerd-shim-good-v1")},
		"good.v1":               {path: filepath.Join(b.dir, "bin/containerd-shim-good-v1")},
		self:                    {path: self},
		"io.containerd.none.v1": {kind: errs.NotFound},
		"/no/such/program":      {kind: errs.NotFound},
		"/etc/passwd":           {kind: errs.Invalid},
		"/etc":                  {kind: errs.Invalid},
		"runc":                  {kind: errs.Invalid},
		"":                      {kind: errs.Invalid},
		"io.containerd.":        {kind: errs.Invalid},
		"../bin/x.v1":           {kind: errs.Invalid},
	} {
		if path, err := shim.Find(name); path != want.path || errs.KindOf(err) != want.kind {
			t.Errorf("%q: %q, %v", name, path, err)
		}
	}
	if _, err := b.driver.Runtime("io.containerd.none.v1"); !errors.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
}
