package rest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/base/errs"
	"berth/client"
	"berth/node/container"
	"berth/node/logfile"
	"berth/spec"
)

// output makes lines that are all different, and what a terminal would show.
func output(n int) (lines []logfile.Line, stdout, stderr []byte) {
	r := rand.New(rand.NewPCG(1, 2))
	at := time.Unix(1_700_000_000, 0)
	for i := range n {
		at = at.Add(time.Duration(r.IntN(2)) * time.Millisecond) // some share their time
		text := fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", r.IntN(200)))
		l := logfile.Line{Time: at, Stream: logfile.Stdout, Text: text, Partial: r.IntN(10) == 0}
		if r.IntN(4) == 0 {
			l.Stream = logfile.Stderr
		}
		out := &stdout
		if l.Stream == logfile.Stderr {
			out = &stderr
		}
		*out = append(*out, text...)
		if !l.Partial {
			*out = append(*out, '\n')
		}
		lines = append(lines, l)
	}
	return lines, stdout, stderr
}

func TestAttachGivesEveryByteAndTheExit(t *testing.T) {
	n := newNode()
	n.write(logfile.Line{Text: []byte("old"), Stream: logfile.Stdout})
	lines, stdout, stderr := output(20_000)
	var out, errOut bytes.Buffer
	exit, err := start(t, n).client().Attach(bg, "web", client.AttachOptions{
		Stdout: &out, Stderr: &errOut,
		Ready: func(context.Context) error { n.write(lines...); n.end(); return nil },
	})
	if err != nil || exit.Code != 7 {
		t.Fatalf("%+v, %v", exit, err)
	}
	if !bytes.Equal(out.Bytes(), stdout) || !bytes.Equal(errOut.Bytes(), stderr) {
		t.Errorf("got %d and %d bytes, want %d and %d", out.Len(), errOut.Len(), len(stdout), len(stderr))
	}
}

func TestAttachFromTheBeginning(t *testing.T) {
	n := newNode()
	n.write(logfile.Line{Text: []byte("old"), Stream: logfile.Stdout})
	n.end()
	var out bytes.Buffer
	if _, err := start(t, n).client().Attach(bg, "web", client.AttachOptions{Stdout: &out, Logs: true}); err != nil || out.String() != "old\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestAttachCarriesInputSizesAndItsEnd(t *testing.T) {
	n := newNode()
	sizes := make(chan spec.Size, 1)
	sizes <- spec.Size{Rows: 5, Cols: 6}
	sent := bytes.Repeat([]byte("0123456789"), 100_000)
	c := start(t, n).client()
	done := make(chan error, 1)
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		_, err := c.Attach(bg, "web", client.AttachOptions{Stdin: bytes.NewReader(sent), Resize: sizes})
		done <- err
	})
	<-n.stdinAt
	n.end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(n.stdin.Bytes(), sent) {
		t.Errorf("%d bytes of input arrived of %d", n.stdin.Len(), len(sent))
	}
}

func TestDetachKeys(t *testing.T) {
	n := newNode()
	_, err := start(t, n).client().Attach(bg, "web", client.AttachOptions{Stdin: strings.NewReader("ls\n\x10x\x10\x11more"), TTY: true})
	if !errors.Is(err, client.ErrDetached) {
		t.Fatalf("%v", err)
	}
	<-n.stdinAt // the client's going away closes a stdin that is to be used once
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := n.stdin.String(); got != "ls\n\x10x" {
		t.Errorf("the process read %q", got)
	}
}

// restarter kills the node after some bytes of output and starts another.
type restarter struct {
	d     *daemon
	w     io.Writer
	left  int
	every int
	kills *int
	wait  *sync.WaitGroup
}

func (r *restarter) Write(p []byte) (int, error) {
	if r.left -= len(p); r.left < 0 && *r.kills < 4 {
		r.left = r.every
		*r.kills++
		gone := make(chan struct{})
		r.wait.Go(func() { r.d.stop(); close(gone); r.d.listen() })
		<-gone
	}
	return r.w.Write(p)
}

func TestAttachOutlivesTheNode(t *testing.T) {
	n := newNode()
	d := start(t, n)
	lines, stdout, stderr := output(60_000)
	var out, errOut bytes.Buffer
	var kills int
	var wait sync.WaitGroup
	defer wait.Wait()
	w := &restarter{d: d, w: &out, left: 500_000, every: 900_000, kills: &kills, wait: &wait}
	exit, err := d.client().Attach(bg, "web", client.AttachOptions{
		Stdout: w, Stderr: &errOut,
		Ready: func(context.Context) error {
			wait.Go(func() {
				for i := 0; i < len(lines); i += 1000 {
					n.write(lines[i : i+1000]...)
					runtime.Gosched()
				}
				n.end()
			})
			return nil
		},
	})
	if err != nil || exit.Code != 7 || kills == 0 {
		t.Fatalf("%+v, %v after %d kills", exit, err, kills)
	}
	if !bytes.Equal(out.Bytes(), stdout) || !bytes.Equal(errOut.Bytes(), stderr) {
		t.Errorf("after %d kills: %d and %d bytes, want %d and %d", kills, out.Len(), errOut.Len(), len(stdout), len(stderr))
	}
}

func TestLogsOutliveTheNode(t *testing.T) {
	n := newNode()
	d := start(t, n)
	lines, _, _ := output(30_000)
	n.write(lines...)
	n.end()
	next := 0
	err := d.client().ContainerLogs(bg, "web", client.LogOptions{Tail: -1, Follow: true}, func(l client.LogLine) error {
		want := lines[next]
		if !bytes.Equal(l.Text, want.Text) || !l.Time.Equal(want.Time) || l.Partial != want.Partial || l.Stderr != (want.Stream == logfile.Stderr) {
			return fmt.Errorf("line %d is %+v, want %+v", next, l, want)
		}
		if next++; next%9000 == 0 {
			d.stop()
			d.listen()
		}
		return nil
	})
	if err != nil || next != len(lines) {
		t.Errorf("%d lines of %d: %v", next, len(lines), err)
	}
}

func TestLogsAsTheyAreOnTheWire(t *testing.T) {
	n := newNode()
	at := time.Date(2024, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	n.write(logfile.Line{Time: at, Stream: logfile.Stderr, Partial: true, Text: []byte("ab")}, logfile.Line{Time: at, Stream: logfile.Stdout, Text: []byte(" c ")})
	resp, err := start(t, n).raw().Get("http://x/v1/containers/web/logs?tail=2")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	want := "2024-01-02T02:04:05.000000060Z stderr P ab\n2024-01-02T02:04:05.000000060Z stdout F  c \n"
	if string(body) != want || n.last() != "logs "+id+" tail=2 follow=false" {
		t.Errorf("%q; %s", body, n.last())
	}
}

func TestWaitOutlivesTheNode(t *testing.T) {
	for _, condition := range []string{client.NotRunning, client.Removed} {
		n := newNode()
		d := start(t, n)
		heard := make(chan struct{})
		var wait sync.WaitGroup
		wait.Go(func() {
			<-heard
			d.stop()
			d.listen()
			n.end()
		})
		var once sync.Once
		go func() { // the wait has arrived
			for !strings.HasPrefix(n.last(), "wait") {
				runtime.Gosched()
			}
			once.Do(func() { close(heard) })
		}()
		exit, err := d.client().ContainerWait(bg, "web", condition)
		if err != nil || exit.Code != 7 {
			t.Errorf("%s: %+v, %v", condition, exit, err)
		}
		wait.Wait()
		if want := "wait " + id + " " + condition; n.last() != want {
			t.Errorf("asked again with %q, want %q", n.last(), want)
		}
	}
}

func TestExecCarriesItsStreams(t *testing.T) {
	n := newNode()
	big := bytes.Repeat([]byte("abcdefgh"), 4<<20) // 32 MiB
	inR, inW := io.Pipe()
	n.exec = func() *container.ExecSession {
		echo, echoW := io.Pipe()
		go func() { // the process: stdin to stderr, then the end
			_, _ = io.Copy(echoW, inR)
			_ = echoW.Close()
			close(n.execEnd)
		}()
		return &container.ExecSession{
			ID: "e1", Stdin: inW, Stdout: bytes.NewReader(big), Stderr: echo,
			CloseStdin: func(context.Context) error { return inW.Close() },
			Resize:     func(spec.Size) error { return nil },
		}
	}
	var out, errOut bytes.Buffer
	exit, err := start(t, n).client().ExecStart(bg, "e1", client.AttachOptions{Stdin: strings.NewReader("half closed"), Stdout: &out, Stderr: &errOut})
	if err != nil || exit.Code != 3 || !bytes.Equal(out.Bytes(), big) || errOut.String() != "half closed" {
		t.Errorf("%+v, %v; %d bytes, %q", exit, err, out.Len(), errOut.String())
	}
}

// A process may leave a child behind that holds its output open.
func TestExecEndsWithItsProcess(t *testing.T) {
	n := newNode()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	n.exec = func() *container.ExecSession {
		_, _ = w.WriteString("last words")
		close(n.execEnd)
		return &container.ExecSession{ID: "e1", Stdout: r, Close: r.Close}
	}
	var out bytes.Buffer
	exit, err := start(t, n).client().ExecStart(bg, "e1", client.AttachOptions{Stdout: &out})
	if err != nil || exit.Code != 3 || out.String() != "last words" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
}

func TestExecIsNotTakenUpAgain(t *testing.T) {
	n := newNode()
	d := start(t, n)
	r, _ := io.Pipe()
	n.exec = func() *container.ExecSession {
		return &container.ExecSession{ID: "e1", Stdout: r, Close: r.Close}
	}
	_, err := d.client().ExecStart(bg, "e1", client.AttachOptions{Ready: func(context.Context) error { go d.stop(); return nil }})
	if !errors.Is(err, errs.Unavailable) {
		t.Errorf("%v", err)
	}
}

func TestEventsGoOnAfterTheLastOne(t *testing.T) {
	n := newNode()
	d := start(t, n)
	base := time.Unix(1_700_000_000, 0)
	for i := range 100 {
		n.events = append(n.events, spec.Event{Seq: uint64(i + 1), Time: base.Add(time.Duration(i/3) * time.Second), Type: "container", Action: "start", ID: fmt.Sprint(i)})
	}
	next := 0
	enough := errors.New("enough")
	err := d.client().Events(bg, client.EventOptions{Since: base}, func(e spec.Event) error {
		if e.ID != fmt.Sprint(next) {
			return fmt.Errorf("event %s where %d was due", e.ID, next)
		}
		if next++; next%40 == 0 {
			d.stop()
			d.listen()
		}
		if next == len(n.events) {
			return enough
		}
		return nil
	})
	if err != enough { //nolint:errorlint // the very error, not wrapped
		t.Errorf("%v after %d", err, next)
	}
	if err := d.client().Events(bg, client.EventOptions{Until: base}, func(spec.Event) error { return nil }); err != nil {
		t.Errorf("until a time that has passed: %v", err)
	}
}

func TestDownloadsThatBreakSayWhy(t *testing.T) {
	n := newNode()
	d := start(t, n)
	n.export = func(w io.Writer) error {
		_, _ = w.Write(make([]byte, 1<<20))
		return errs.New(errs.Conflict, "the container went away")
	}
	var out bytes.Buffer
	err := d.client().ContainerExport(bg, "web", &out)
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "went away") || out.Len() != 1<<20 {
		t.Errorf("%v after %d bytes", err, out.Len())
	}
	resp, err := d.raw().Get("http://x/v1/containers/web/export")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("a client without trailers takes half an archive for a whole one")
	}
}

func TestUploads(t *testing.T) {
	n := newNode()
	c := start(t, n).client()
	data := bytes.Repeat([]byte("tar!"), 8<<20)
	n.upload = func(r io.Reader) error {
		got, err := io.ReadAll(r)
		if err == nil && !bytes.Equal(got, data) {
			err = fmt.Errorf("%d bytes of %d", len(got), len(data))
		}
		return err
	}
	if err := c.ContainerCopyTo(bg, "web", "/", bytes.NewReader(data), false); err != nil {
		t.Error(err)
	}
	if _, err := c.ImageLoad(bg, bytes.NewReader(data), nil); err != nil {
		t.Error(err)
	}
	n.upload = func(io.Reader) error { return errs.New(errs.Invalid, "no tar") }
	if err := c.ContainerCopyTo(bg, "web", "/", bytes.NewReader(data), false); !errors.Is(err, errs.Invalid) {
		t.Errorf("refused early: %v", err)
	}
	if _, err := c.ImageLoad(bg, bytes.NewReader(data), nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("refused early: %v", err)
	}
}

func TestTheClientsGoingCancelsAPull(t *testing.T) {
	n := newNode()
	canceled := make(chan struct{})
	n.pull = func(ctx context.Context, _ func(spec.Progress)) error {
		<-ctx.Done()
		close(canceled)
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(bg)
	_, err := start(t, n).client().ImagePull(ctx, spec.PullRequest{Reference: "x"}, func(spec.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-canceled
}

func TestStatsStream(t *testing.T) {
	n := newNode()
	n.stats = []spec.Stats{{ID: id, Name: "web"}}
	enough := errors.New("enough")
	seen := 0
	err := start(t, n).client().ContainerStatsStream(bg, nil, func(s []spec.Stats) error {
		if seen++; len(s) != 1 || s[0].Name != "web" || seen == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || seen != 2 {
		t.Errorf("%v after %d", err, seen)
	}
}

func TestASlowReaderBlocksNobodyElse(t *testing.T) {
	n := newNode()
	d := start(t, n)
	lines, stdout, _ := output(50_000)
	n.write(lines...)
	n.end()
	slow, err := d.raw().Get("http://x/v1/containers/web/logs?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close() // and never reads
	var out bytes.Buffer
	if _, err := d.client().Attach(bg, "web", client.AttachOptions{Stdout: &out, Logs: true}); err != nil || !bytes.Equal(out.Bytes(), stdout) {
		t.Errorf("%v after %d bytes", err, out.Len())
	}
}

func TestNobodyThere(t *testing.T) {
	c := client.New(t.TempDir() + "/none")
	begun := time.Now()
	_, err := c.Attach(bg, "web", client.AttachOptions{})
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "is it running? start it with berth up") {
		t.Errorf("%v", err)
	}
	if err := c.Ping(bg); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "berth up") {
		t.Errorf("%v", err)
	}
	if _, err := c.ContainerWait(bg, "web", ""); !errors.Is(err, errs.Unavailable) {
		t.Errorf("%v", err)
	}
	if time.Since(begun) > 20*time.Second { // a node that has answered is waited for for longer
		t.Error("waited for a node that was never there")
	}
}

func TestAttachOfSomethingElse(t *testing.T) {
	resp, err := start(t, newNode()).raw().Get("http://x/v1/containers/web/attach")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("%s", resp.Status)
	}
}
