package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/keeper"
	"berth/node/logfile"
)

// numbers is a script that writes the lines 1 to n to both streams in turn,
// in bursts.
func numbers(n int) string {
	return fmt.Sprintf(`awk 'BEGIN { for (i = 1; i <= %d; i++) { print i; if (i %% 97 == 0) fflush(); if (i %% 2000 == 0) system("sleep 0.01") } exit 9 }'`, n)
}

func checkNumbers(t *testing.T, text string, n int) {
	t.Helper()
	var want bytes.Buffer
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&want, i)
	}
	if text == want.String() {
		return
	}
	got := strings.Split(text, "\n")
	for i := range got {
		if got[i] != fmt.Sprint(i+1) {
			t.Fatalf("%d lines; line %d is %q, after %q", len(got)-1, i+1, got[i], got[max(i-1, 0)])
		}
	}
	t.Fatalf("%d lines, want %d", len(got)-1, n)
}

// streams reads a log into one text for each stream.
func (r *rig) streams(path string, q logfile.Query) (map[logfile.Stream]string, error) {
	texts := map[logfile.Stream][]byte{}
	err := logfile.Read(r.t.Context(), path, q, func(l logfile.Line) error {
		text := append(texts[l.Stream], l.Text...)
		if !l.Partial {
			text = append(text, '\n')
		}
		texts[l.Stream] = text
		return nil
	})
	return map[logfile.Stream]string{logfile.Stdout: string(texts[logfile.Stdout]), logfile.Stderr: string(texts[logfile.Stderr])}, err
}

func TestKeeperKilled(t *testing.T) {
	r := start(t)
	const lines = 60000
	l := r.script("a", numbers(lines))
	r.launch(l)
	// Both streams, rotation, and somebody who follows all the while.
	mixed := r.script("m", fmt.Sprintf(`awk 'BEGIN { for (i = 1; i <= %d; i++) { print i; print i > "/dev/stderr"; if (i %% 53 == 0) fflush(); if (i %% 2000 == 0) system("sleep 0.01") } }'`, lines))
	mixed.Log.MaxSize, mixed.Log.MaxFiles = 100<<10, 1000
	r.launch(mixed)
	ended, followed := make(chan struct{}), make(chan string, 1)
	go func() {
		out, err := r.streams(mixed.Log.Path, logfile.Query{Tail: -1, Follow: true, Ended: ended})
		followed <- fmt.Sprint(out, err)
	}()
	quiet := r.script("b", "read x; echo got $x; exit 4")
	quiet.Stdin = true
	b := r.launch(quiet)
	done := r.launch(r.script("c", "exit 1")).Pid
	r.wait("c")
	kills := 0
	for range 8 {
		pid := r.Pid()
		if pid == 0 {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		kills++
		eventually(t, func() bool { p := r.Pid(); return p != 0 && p != pid })
		time.Sleep(15 * time.Millisecond)
	}
	t.Logf("%d kills, exit of c was of %d", kills, done)
	// While being replaced, too: Launch waits.
	if err := unix.Kill(r.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := r.Launch(t.Context(), r.script("d", "exit 2"))
		if err == nil {
			break
		}
		if !errors.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
	}
	if e := r.wait("d"); e.Code != 2 {
		t.Errorf("exit %+v", e)
	}
	if e := r.wait("a"); e.Known && e.Code != 9 {
		t.Errorf("exit %+v", e)
	} else if !e.Known {
		t.Error("exit not known")
	}
	checkNumbers(t, output(t, l.Log.Path), lines)
	if e := r.wait("m"); !e.Known || e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	close(ended)
	out, err := r.streams(mixed.Log.Path, logfile.Query{Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	checkNumbers(t, out[logfile.Stdout], lines)
	checkNumbers(t, out[logfile.Stderr], lines)
	if saw, is := <-followed, fmt.Sprint(out, nil); saw != is {
		same := 0
		for same < min(len(saw), len(is)) && saw[same] == is[same] {
			same++
		}
		t.Errorf("the follower saw something else: %d bytes of %d, other ones from byte %d on: %.60q, want %.60q; its end is %.60q",
			len(saw), len(is), same, saw[same:], is[same:], saw[max(0, len(saw)-60):])
	}
	if _, err := io.WriteString(b.Stdin, "it\n"); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("b"); e.Code != 4 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	if got := output(t, quiet.Log.Path); got != "got it\n" {
		t.Errorf("b said %q", got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.twice) > 0 {
		t.Errorf("reported twice: %v", r.twice)
	}
}

func TestUpgrade(t *testing.T) {
	r := start(t)
	const lines = 40000
	l := r.script("a", numbers(lines))
	r.launch(l)
	b := r.script("b", "read x; exit 4")
	b.Stdin = true
	p := r.launch(b)
	pid := r.Pid()
	for range 4 {
		if err := r.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if outdated, err := r.Outdated(); err != nil {
		t.Error(err)
	} else if !outdated { // Command is env, which executed the test binary
		t.Error("not outdated")
	}
	if r.Pid() != pid {
		t.Errorf("pid %d became %d", pid, r.Pid())
	}
	r.launch(r.script("c", "exit 6"))
	if e := r.wait("c"); e.Code != 6 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	if e := r.wait("a"); e.Code != 9 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	checkNumbers(t, output(t, l.Log.Path), lines)
	_, _ = io.WriteString(p.Stdin, "\n")
	if e := r.wait("b"); e.Code != 4 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	if fds := countFds(t, pid); fds > 50 {
		t.Errorf("%d descriptors after upgrades", fds)
	}
}

// nodeProcess is a node that launches two processes and waits to be killed.
func nodeProcess(dir string) {
	k, err := keeper.Open(context.Background(), keeper.Config{
		Socket: dir + "/keeper.sock", PidFile: dir + "/keeper.pid", Command: command(dir), Exited: func(keeper.Exit) {},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	go func() { _ = k.Run(context.Background()) }()
	r := &rig{dir: dir}
	b := r.script("b", "read x; echo $x; exit 4")
	b.Stdin = true
	given := r.script("given", numbers(30000))
	given.Streams = &keeper.Streams{Stdin: dir + "/given-stdin", Stdout: dir + "/given-stdout", Stderr: dir + "/given-stderr"}
	for _, l := range []keeper.Launch{r.script("a", numbers(30000)), b, r.script("c", "exit 3"), given} {
		if _, err := k.Launch(context.Background(), l); err != nil {
			fmt.Println("launch:", err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	select {}
}

func TestNodeKilled(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "keeper-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	(&rig{t: t, dir: dir}).fifos("given")
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	node, err := os.StartProcess(os.Args[0], os.Args[:1], &os.ProcAttr{
		Env: append(os.Environ(), "KEEPER_TEST_NODE="+dir), Files: []*os.File{nil, in, os.Stderr},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	buf := make([]byte, 100)
	if n, _ := out.Read(buf); string(buf[:n]) != "ready\n" {
		t.Fatalf("node says %q", buf[:n])
	}
	if err := node.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = node.Wait()
	client := follow(t, dir+"/given-stdout")
	r := open(t, dir)
	t.Cleanup(func() { shutdown(t, dir) })
	if n := len(r.Processes()); n != 4 {
		t.Fatalf("%d processes", n)
	}
	checkNumbers(t, receive(t, client), 30000)
	if p, _ := r.Process("given"); !p.Given || p.Stdin != nil {
		t.Errorf("process %+v", p)
	}
	if err := r.CloseStdin(t.Context(), "given"); err != nil {
		t.Error(err)
	}
	if e := r.wait("c"); e.Code != 3 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	b, _ := r.Process("b")
	if _, err := io.WriteString(b.Stdin, "hi\n"); err != nil {
		t.Fatal(err)
	}
	if e := r.wait("b"); e.Code != 4 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	if e := r.wait("a"); e.Code != 9 || !e.Known {
		t.Errorf("exit %+v", e)
	}
	checkNumbers(t, output(t, dir+"/a.log"), 30000)
}

func TestSecondNodeIsRefused(t *testing.T) {
	t.Parallel() // it waits long
	r := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := keeper.Open(ctx, keeper.Config{Socket: r.dir + "/keeper.sock", PidFile: r.dir + "/keeper.pid", Command: command(r.dir), Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, errs.Conflict) {
		t.Errorf("second node: %v", err)
	}
	r.launch(r.script("a", "exit 0"))
	r.wait("a")
}
