package keeper_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/keeper"
)

// loggerProcess copies what it is given to two files.
func loggerProcess(path string, how []string) {
	if len(how) > 0 && how[0] == "never" {
		time.Sleep(time.Minute)
	}
	if len(how) > 0 && how[0] == "die" {
		os.Exit(3)
	}
	file := func(name string) *os.File {
		f, err := os.Create(name)
		if err != nil {
			os.Exit(4)
		}
		return f
	}
	out, complaints := file(path+".out"), file(path+".err")
	fmt.Fprintf(out, "%s %s %d\n", os.Getenv("CONTAINER_ID"), os.Getenv("CONTAINER_NAMESPACE"), len(os.Environ()))
	_ = os.NewFile(5, "ready").Close()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(out, os.NewFile(3, "stdout")) })
	both.Go(func() { _, _ = io.Copy(complaints, os.NewFile(4, "stderr")) })
	both.Wait()
	_, _ = out.WriteString("end\n")
	if len(how) > 0 && how[0] == "stay" {
		time.Sleep(time.Minute)
	}
	os.Exit(0)
}

// fifos makes the three FIFOs of a client.
func (r *rig) fifos(id string) *keeper.Streams {
	r.t.Helper()
	s := &keeper.Streams{Stdin: r.dir + "/" + id + "-stdin", Stdout: r.dir + "/" + id + "-stdout", Stderr: r.dir + "/" + id + "-stderr"}
	for _, path := range []string{s.Stdin, s.Stdout, s.Stderr} {
		if err := unix.Mkfifo(path, 0o700); err != nil {
			r.t.Fatal(err)
		}
	}
	return s
}

// follow reads a FIFO to its end.
func follow(t *testing.T, path string) <-chan string {
	t.Helper()
	f := openFIFO(t, path, unix.O_RDONLY)
	text := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(f)
		_ = f.Close()
		text <- string(data)
	}()
	return text
}

// openFIFO opens as clients do. A reader that is there before any writer
// sees no end.
func openFIFO(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func receive(t *testing.T, text <-chan string) string {
	t.Helper()
	select {
	case s := <-text:
		return s
	case <-time.After(time.Minute):
		t.Fatal("the client sees no end")
		return ""
	}
}

func TestGivenFIFOs(t *testing.T) {
	r := start(t)
	l := r.script("a", `readlink /proc/self/fd/1; cat; echo bad >&2; exit 7`)
	l.Streams = r.fifos("a")
	p := r.launch(l)
	if p.Stdin != nil || p.Stdout != nil || p.Stderr != nil {
		t.Errorf("process %+v", p)
	}
	out, complaints := follow(t, l.Streams.Stdout), follow(t, l.Streams.Stderr)
	in := openFIFO(t, l.Streams.Stdin, unix.O_WRONLY)
	if _, err := io.WriteString(in, "over "); err != nil {
		t.Fatal(err)
	}
	_ = in.Close() // as one client of several may
	in = openFIFO(t, l.Streams.Stdin, unix.O_WRONLY)
	if err := r.CloseStdin(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "and out\n"); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	if got, want := receive(t, out), l.Streams.Stdout+"\nover and out\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if got := receive(t, complaints); got != "bad\n" {
		t.Errorf("stderr %q", got)
	}
	if e := r.wait("a"); e.Code != 7 {
		t.Errorf("exit %+v", e)
	}
}

// A client that comes late, goes and comes back loses nothing that it has not
// read, and the process does not hear of it.
func TestGivenClientGoes(t *testing.T) {
	r := start(t)
	l := r.script("a", `echo one; read x; echo two; read x; echo three`)
	l.Streams = r.fifos("a")
	r.launch(l)
	in := openFIFO(t, l.Streams.Stdin, unix.O_WRONLY)
	defer in.Close()
	for _, want := range []string{"one\n", "two\n"} {
		out := openFIFO(t, l.Streams.Stdout, unix.O_RDONLY)
		buf := make([]byte, 100)
		if n, err := out.Read(buf); string(buf[:n]) != want {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		_ = out.Close()
		_, _ = io.WriteString(in, "\n")
	}
	if e := r.wait("a"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if got := receive(t, follow(t, l.Streams.Stdout)); got != "three\n" {
		t.Errorf("after its end: %q", got)
	}
	if err := r.Forget(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func TestGivenNull(t *testing.T) {
	r := start(t)
	l := r.script("a", `readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 >`+r.dir+`/seen; read x && exit 1; echo out; exit 3`)
	l.Streams = &keeper.Streams{}
	r.launch(l)
	if e := r.wait("a"); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
}

// One file takes both streams, in their order, behind what it holds; a process
// that opens its own output anew does not empty it.
func TestGivenFile(t *testing.T) {
	r := start(t)
	path := filepath.Join(r.dir, "new", "deep", "log")
	for i := range 2 {
		l := r.script(fmt.Sprint(i), `echo out; echo err >&2; echo again >/dev/stdout; echo last >&2`)
		l.Streams = &keeper.Streams{Stdout: "file://" + path}
		r.launch(l)
		r.wait(l.ID)
	}
	want := strings.Repeat("out\nerr\nagain\nlast\n", 2)
	if got, _ := os.ReadFile(path); string(got) != want {
		t.Errorf("file holds %q", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func logger(r *rig, id string, how ...string) *keeper.Streams {
	uri := "binary://" + os.Args[0] + "?log-to=" + strings.ReplaceAll(r.dir+"/"+id, "/", "%2F")
	for _, h := range how {
		uri += "&" + h
	}
	return &keeper.Streams{Stdout: uri, Stderr: uri, Name: id, Namespace: "space"}
}

func TestGivenLogger(t *testing.T) {
	r := start(t)
	l := r.script("a", `echo out; echo err >&2; exit 5`)
	l.Streams = logger(r, "a")
	r.launch(l)
	if e := r.wait("a"); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
	eventually(t, func() bool {
		out, _ := os.ReadFile(r.dir + "/a.out")
		complaints, _ := os.ReadFile(r.dir + "/a.err")
		return string(out) == "a space 2\nout\nend\n" && string(complaints) == "err\n"
	})
	if err := r.Forget(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// Nothing stays of a process whose streams cannot be had.
func TestGivenErrors(t *testing.T) {
	r := start(t)
	plain, fifo := r.dir+"/plain", r.dir+"/fifo"
	if err := errors.Join(os.WriteFile(plain, nil, 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	// The keeper opens some files for itself only when it first works.
	if _, err := r.Launch(t.Context(), r.script("warm", "true")); err != nil {
		t.Fatal(err)
	}
	r.wait("warm")
	if err := r.Forget(t.Context(), "warm"); err != nil {
		t.Fatal(err)
	}
	fds := countFds(t, r.Pid())
	for _, tt := range []struct {
		streams keeper.Streams
		kind    errs.Kind
		says    string
	}{
		{keeper.Streams{Stdout: r.dir + "/nothere"}, errs.NotFound, "nothere"},
		{keeper.Streams{Stdin: fifo, Stdout: fifo, Stderr: "fifo://" + r.dir + "/nothere"}, errs.NotFound, "nothere"},
		{keeper.Streams{Stdin: r.dir}, errs.Invalid, "neither a FIFO nor a file"},
		{keeper.Streams{Stdin: "file://" + plain}, errs.Invalid, "standard input"},
		{keeper.Streams{Stdout: "fifo://" + plain}, errs.Invalid, "not a FIFO"},
		{keeper.Streams{Stdout: "file://" + fifo}, errs.Invalid, "not a file"},
		{keeper.Streams{Stdout: "file://" + plain + "/below"}, errs.NotFound, "below"},
		{keeper.Streams{Stdout: "relative"}, errs.Invalid, "relative"},
		{keeper.Streams{Stdout: "http://x/y"}, errs.Invalid, "http"},
		{keeper.Streams{Stdout: "fifo://host/path"}, errs.Invalid, "slash"},
		{keeper.Streams{Stdout: "binary:///bin/cat?%zz"}, errs.Invalid, "zz"},
		{keeper.Streams{Stdout: "\x00:"}, errs.Invalid, "stream"},
		{keeper.Streams{Stdin: fifo, Stdout: "binary:///no/such/logger"}, errs.NotFound, "no such program"},
		{keeper.Streams{Stdout: "binary://" + plain}, errs.Invalid, "permission denied"},
		{*logger(r, "x", "never"), errs.Timeout, "not ready after 1s"},
		{*logger(r, "x", "die"), errs.Unavailable, "ended with code 3 before it was ready"},
		{keeper.Streams{Stdout: strings.Replace(logger(r, "x").Stdout, "binary", "binary-v2", 1)}, errs.Unavailable, "without a word"},
	} {
		l := r.script("a", "echo ran >"+r.dir+"/ran")
		l.Streams = &tt.streams
		if _, err := r.Launch(t.Context(), l); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v (%s)", tt.streams, err, errs.KindOf(err))
		}
	}
	if _, err := os.Stat(r.dir + "/ran"); err == nil {
		t.Error("a process ran")
	}
	if len(r.Processes()) > 0 {
		t.Error("a process is left")
	}
	defer func() {
		if t.Failed() {
			t.Logf("the keeper holds %q", openFiles(r.Pid()))
		}
	}()
	eventually(t, func() bool { return countFds(t, r.Pid()) <= fds+4 }) // scratch
	eventually(t, func() bool { return loggers(t, r.dir+"/x", "") == 0 })
}

func openFiles(pid int) (names []string) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		name, _ := os.Readlink(link)
		names = append(names, name)
	}
	return names
}

// loggers counts the processes that log to path.
func loggers(t *testing.T, path, how string) (n int) {
	t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, _ := os.ReadFile(name)
		if bytes.Contains(line, []byte("log-to\x00"+path)) && bytes.Contains(line, []byte(how)) {
			n++
		}
	}
	return n
}

// Whoever is killed, clients read every byte once, and then the end.
func TestGivenKeeperKilled(t *testing.T) {
	r := start(t)
	const lines = 40000
	fifo := r.script("fifo", numbers(lines))
	fifo.Streams = r.fifos("fifo")
	file := r.script("file", numbers(lines))
	file.Streams = &keeper.Streams{Stdout: "file://" + r.dir + "/file.txt"}
	logged := r.script("logged", numbers(lines))
	logged.Streams = logger(r, "logged")
	r.launch(fifo)
	out, complaints := follow(t, fifo.Streams.Stdout), follow(t, fifo.Streams.Stderr)
	r.launch(file)
	r.launch(logged)
	quiet := r.script("quiet", "read x; echo got $x; read y || exit 4")
	quiet.Streams = r.fifos("quiet")
	r.launch(quiet)
	said := follow(t, quiet.Streams.Stdout)
	for range 5 {
		old := r.Pid()
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { p := r.Pid(); return p != 0 && p != old })
		time.Sleep(10 * time.Millisecond)
	}
	in := openFIFO(t, quiet.Streams.Stdin, unix.O_WRONLY)
	_, _ = io.WriteString(in, "this\n")
	_ = in.Close()
	if err := r.CloseStdin(t.Context(), "quiet"); err != nil {
		t.Error(err)
	}
	if got := receive(t, said); got != "got this\n" {
		t.Errorf("said %q", got)
	}
	checkNumbers(t, receive(t, out), lines)
	if got := receive(t, complaints); got != "" {
		t.Errorf("stderr %q", got)
	}
	for _, id := range []string{"fifo", "file", "logged"} {
		if e := r.wait(id); !e.Known || e.Code != 9 {
			t.Errorf("exit %+v", e)
		}
	}
	if e := r.wait("quiet"); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
	text, _ := os.ReadFile(r.dir + "/file.txt")
	checkNumbers(t, string(text), lines)
	eventually(t, func() bool {
		text, _ = os.ReadFile(r.dir + "/logged.out")
		return bytes.HasSuffix(text, []byte("end\n"))
	})
	checkNumbers(t, strings.TrimSuffix(strings.TrimPrefix(string(text), "logged space 2\n"), "end\n"), lines)
}

func TestGivenUpgrade(t *testing.T) {
	r := start(t)
	const lines = 20000
	l := r.script("a", numbers(lines))
	l.Streams = r.fifos("a")
	file := r.script("file", numbers(lines))
	file.Streams = &keeper.Streams{Stdout: "file://" + r.dir + "/file.txt"}
	r.launch(l)
	r.launch(file)
	out := follow(t, l.Streams.Stdout)
	for range 3 {
		if err := r.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	checkNumbers(t, receive(t, out), lines)
	r.wait("file")
	text, _ := os.ReadFile(r.dir + "/file.txt")
	checkNumbers(t, string(text), lines)
}

func TestGivenNoLeaks(t *testing.T) {
	r := start(t)
	streams := []*keeper.Streams{r.fifos("f"), {Stdout: "file://" + r.dir + "/file"}, logger(r, "l"), {}}
	round := func() (inKeeper, inNode int) {
		for i := range 12 {
			l := r.script(fmt.Sprintf("p%d", i), "echo hello")
			l.Streams = streams[i%len(streams)]
			r.launch(l)
			r.wait(l.ID)
			if err := r.Forget(t.Context(), l.ID); err != nil {
				t.Error(err)
			}
			r.mu.Lock()
			delete(r.exits, l.ID)
			r.mu.Unlock()
			l.Argv = []string{"false"}
			if _, err := r.Launch(t.Context(), l); err == nil {
				t.Error("false succeeded")
			}
		}
		eventually(t, func() bool { return loggers(t, r.dir+"/l", "") == 0 })
		return countFds(t, r.Pid()), countFds(t, os.Getpid())
	}
	k1, n1 := round()
	k2, n2 := round()
	if k2 > k1+3 || n2 > n1+3 {
		t.Errorf("descriptors: keeper %d then %d, node %d then %d", k1, k2, n1, n2)
	}
}
