package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/logfile"
)

// plant is a sink on a fresh log, with the read end of a process's pipe.
func plant(t *testing.T, path string, maxSize int64) (k *sink, w *workspace, process *os.File, fd int) {
	t.Helper()
	log, err := logfile.OpenWriter(path, maxSize, 2)
	if err != nil {
		t.Fatal(err)
	}
	var hold, out [2]int
	if err := errors.Join(unix.Pipe2(hold[:], unix.O_CLOEXEC|unix.O_NONBLOCK), unix.Pipe2(out[:], unix.O_CLOEXEC|unix.O_NONBLOCK)); err != nil {
		t.Fatal(err)
	}
	if w, err = newWorkspace(); err != nil {
		t.Fatal(err)
	}
	k = &sink{log: log, note: &note{}, holdOut: hold[0], holdIn: hold[1], say: slog.New(slog.NewTextHandler(t.Output(), nil))}
	process = os.NewFile(uintptr(out[1]), "process")
	t.Cleanup(func() {
		k.close()
		closeAll([]int{out[0], w.scratchIn, w.scratchOut})
		_ = process.Close()
	})
	return k, w, process, out[0]
}

func logged(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	err := logfile.Read(t.Context(), path, logfile.Query{Tail: -1}, func(l logfile.Line) error {
		b.Write(l.Text)
		if !l.Partial {
			b.WriteByte('\n')
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Whatever step a keeper dies at, the next one completes the log.
func TestRecoverAtEachStep(t *testing.T) {
	const before, text = "one\ntwo\n", "three\nfour\nfive\n"
	for _, tt := range []struct {
		name string
		die  func(k *sink, w *workspace, fd int)
	}{
		{"before the note", func(*sink, *workspace, int) {}},
		{"after the note", func(k *sink, _ *workspace, _ int) { k.annotate(logfile.Stdout, len(text)) }},
		{"after the splice", func(k *sink, _ *workspace, fd int) {
			k.annotate(logfile.Stdout, len(text))
			_, _ = splice(fd, k.holdIn, len(text))
		}},
		{"after the splice from a terminal", func(k *sink, _ *workspace, fd int) {
			k.annotate(logfile.Stdout, 0)
			_, _ = splice(fd, k.holdIn, 1<<16)
		}},
		{"in the middle of the write", func(k *sink, _ *workspace, fd int) {
			k.annotate(logfile.Stdout, len(text))
			_, _ = splice(fd, k.holdIn, len(text))
			records, _ := logfile.Append(nil, 1000, time.Now(), logfile.Stdout, []byte(text))
			_ = k.log.Write(records[:50])
		}},
		{"after the write", func(k *sink, _ *workspace, fd int) {
			k.annotate(logfile.Stdout, len(text))
			_, _ = splice(fd, k.holdIn, len(text))
			records, _ := logfile.Append(nil, 1000, time.Now(), logfile.Stdout, []byte(text))
			_ = k.log.Write(records)
		}},
		{"while emptying the pipe", func(k *sink, w *workspace, fd int) {
			k.annotate(logfile.Stdout, len(text))
			_, _ = splice(fd, k.holdIn, len(text))
			records, _ := logfile.Append(nil, 1000, time.Now(), logfile.Stdout, []byte(text))
			_ = k.log.Write(records)
			_ = w.drain(k.holdOut, 4)
		}},
		{"never", func(k *sink, w *workspace, fd int) { _, _ = k.fromPipe(fd, logfile.Stdout, w, false) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			k, w, process, fd := plant(t, path, 0)
			for _, s := range []string{before, text} {
				if _, err := process.WriteString(s); err != nil {
					t.Fatal(err)
				}
				if s == before {
					if v, err := k.fromPipe(fd, logfile.Stdout, w, false); v != moved || err != nil {
						t.Fatal(v, err)
					}
				}
			}
			tt.die(k, w, fd)
			log, err := logfile.OpenWriter(path, 0, 2)
			if err != nil {
				t.Fatal(err)
			}
			next := &sink{log: log, note: k.note, holdOut: k.holdOut, holdIn: k.holdIn, say: k.say}
			defer log.Close()
			if err := next.recover(w); err != nil {
				t.Fatal(err)
			}
			if _, err := process.WriteString("six\n"); err != nil {
				t.Fatal(err)
			}
			for {
				v, err := next.fromPipe(fd, logfile.Stdout, w, false)
				if err != nil {
					t.Fatal(err)
				}
				if v == empty {
					break
				}
			}
			if got, want := logged(t, path), before+text+"six\n"; got != want {
				t.Errorf("log %q, want %q", got, want)
			}
		})
	}
}

func TestBeginningOfALineWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	k, w, process, fd := plant(t, path, 0)
	step := func(write string, flush bool, want verdict, log string) {
		t.Helper()
		if _, err := process.WriteString(write); err != nil {
			t.Fatal(err)
		}
		if v, err := k.fromPipe(fd, logfile.Stdout, w, flush); v != want || err != nil {
			t.Errorf("%q: %v %v, want %v", write, v, err, want)
		}
		if got := logged(t, path); got != log {
			t.Errorf("%q: log %q, want %q", write, got, log)
		}
	}
	step("a\nb", false, moved, "a\n")
	step("", false, unended, "a\n")
	step("c\n", false, moved, "a\nbc\n")
	step("", false, empty, "a\nbc\n")
	step("prompt", true, moved, "a\nbc\nprompt")
	long := strings.Repeat("x", 40000)
	step(long, false, moved, "a\nbc\nprompt"+long)
	step("last", false, unended, "a\nbc\nprompt"+long)
	_ = process.Close()
	step1, err := k.fromPipe(fd, logfile.Stdout, w, false) // its writer is gone
	step2, err2 := k.fromPipe(fd, logfile.Stdout, w, false)
	if step1 != moved || step2 != ended || err != nil || err2 != nil {
		t.Error(step1, err, step2, err2)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "log")
	k, w, process, fd := plant(t, path, 0)
	for i := range 40 {
		if _, err := fmt.Fprintln(process, i, strings.Repeat("x", 4000)); err != nil {
			t.Fatal(err)
		}
		if v, err := k.fromPipe(fd, logfile.Stdout, w, false); v != moved || err != nil {
			t.Fatal(v, err)
		}
	}
	if !k.lost {
		t.Fatal("the disk was never full")
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.HasSuffix(data, []byte("x\n")) {
		t.Errorf("torn record at the end: %v", err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := process.WriteString("space again\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.fromPipe(fd, logfile.Stdout, w, false); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, path); got != "space again\n" || k.lost {
		t.Errorf("log %q", got)
	}
}

func TestFate(t *testing.T) {
	for _, tt := range []struct {
		script string
		code   int
	}{{"exit 7", 7}, {"kill -9 $$", 128 + 9}, {"true", 0}} {
		cmd := exec.Command("sh", "-c", tt.script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(cmd.Process.Pid, unix.PIDFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if !readable(fd, 10000) {
			t.Fatal("it does not end")
		}
		if code, known := fate(fd, cmd.Process.Pid); !known || code != tt.code {
			t.Errorf("%s: zombie: %d %v", tt.script, code, known)
		}
		_ = cmd.Wait()
		if code, known := fate(fd, cmd.Process.Pid); known && code != tt.code || !known && code != 0 {
			t.Errorf("%s: reaped: %d %v", tt.script, code, known)
		} else if !known {
			t.Log("this kernel forgets exit codes when a process is reaped")
		}
	}
}

// A process that has ended may still fall to us, when its parent ends without
// having waited for it: reap must know it until somebody has told its end, and
// only one does.
func TestOneTellsAnEnd(t *testing.T) {
	parent := exec.Command("sh", "-c", `sleep 1000 & echo $!; exec sleep 2000`) // which waits for nobody
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Process.Kill(); _ = parent.Wait() }()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(text, []byte("sleep")) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !readable(fd, 10000) {
		t.Fatal("it does not end")
	}
	c := &child{record: record{Pid: pid}, fds: map[role]int{rolePidfd: fd}, awaited: true}
	s := &server{children: map[int]*child{pid: c}}
	if s.becameChild(c) {
		t.Error("a process of a parent that lives is called ours")
	}
	if s.children[pid] != c {
		t.Error("reap would not know it if its parent ended now")
	}
	if !s.claim(c) || s.claim(c) {
		t.Error("the end is not told once")
	}
	s.children[pid] = c
	delete(s.children, pid) // as reap does
	if s.claim(c) {
		t.Error("the end is told by watch after reap has told it")
	}
}

func FuzzFromOutside(f *testing.F) {
	f.Add(`{"level":"error","msg":"x"}`, "1 (a) b) Z 1 2")
	f.Add("plain\ntext", "")
	f.Fuzz(func(t *testing.T, log, stat string) {
		if got := runtimeError([]byte(log)); len(got) > len(log)*3+3 {
			t.Errorf("%d bytes became %d", len(log), len(got))
		}
		_, _ = parseStat(stat)
		var m message
		if json.Unmarshal([]byte(log), &m) == nil && m.Record != nil {
			if _, err := byRole(m.Record.Roles, nil); err == nil && len(m.Record.Roles) > 0 {
				t.Error("roles without descriptors")
			}
		}
	})
}

// The keeper must stay small: what it imports stays in memory for ever.
func TestImportsNothingHeavy(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("needs the go command: %v", err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{"net/http", "crypto/tls", "encoding/xml", "encoding/gob", "html", "text/template", "google.golang.org/", "github.com/", "go.opentelemetry.io/", "k8s.io/"} {
			if pkg == strings.TrimSuffix(heavy, "/") || strings.HasPrefix(pkg, heavy) && strings.HasSuffix(heavy, "/") {
				t.Errorf("imports %s", pkg)
			}
		}
	}
}
