package keeper_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/node/keeper"
)

// as makes the container's process another user's.
func (c *container) as(uid int) {
	c.t.Helper()
	file := c.bundle + "/config.json"
	data, err := os.ReadFile(file)
	var config map[string]any
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	config["process"].(map[string]any)["user"] = map[string]any{"uid": uid, "gid": uid}
	if data, err = json.Marshal(config); err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// A process that is not root may open its own streams anew.
func TestGivenReopen(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		c := r.container(runtime, "a", false, "sh", "-c", "read x </dev/stdin; echo got $x >/dev/stdout; echo bad >/dev/stderr; exit 3")
		c.as(1000)
		if err := os.Symlink("/proc/self/fd/0", c.bundle+"/rootfs/dev/stdin"); err != nil {
			t.Fatal(err)
		}
		l := c.run(false)
		l.Streams = r.fifos("s")
		r.launch(l)
		out, complaints := follow(t, l.Streams.Stdout), follow(t, l.Streams.Stderr)
		in := openFIFO(t, l.Streams.Stdin, unix.O_WRONLY)
		_, _ = io.WriteString(in, "it\n")
		_ = in.Close()
		if got := receive(t, out) + receive(t, complaints); got != "got it\nbad\n" {
			t.Errorf("said %q", got)
		}
		if e := r.wait(c.id); e.Code != 3 {
			t.Errorf("exit %+v", e)
		}
	})
}

func TestGivenTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		const lines = 20000
		c := r.container(runtime, "a", true, "sh", "-c", fmt.Sprintf("stty -echo -onlcr; echo ready; read x; echo got $x; stty size; seq %d; read y; echo no more", lines))
		l := c.run(true)
		l.Streams = r.fifos("s")
		p := r.launch(l)
		if p.Console == nil {
			t.Error("no terminal")
		}
		in := openFIFO(t, l.Streams.Stdin, unix.O_WRONLY)
		shown := openFIFO(t, l.Streams.Stdout, unix.O_RDONLY)
		if _, err := io.ReadFull(shown, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(in, "it\n")
		out := follow(t, l.Streams.Stdout)
		_ = shown.Close()
		for range 3 {
			old := r.Pid()
			if err := unix.Kill(old, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() bool { p := r.Pid(); return p != 0 && p != old })
		}
		_ = in.Close()
		if err := r.CloseStdin(t.Context(), c.id); err != nil {
			t.Error(err)
		}
		text, begun := strings.CutPrefix(receive(t, out), "got it\n33 101\n")
		text, ended := strings.CutSuffix(text, "no more\n")
		if !begun || !ended {
			t.Errorf("begins and ends with %.40q…%q", text, text[max(0, len(text)-40):])
		}
		checkNumbers(t, text, lines)
		if e := r.wait(c.id); e.Known && e.Code != 0 {
			t.Errorf("exit %+v", e)
		}
	})
}

// What a terminal shows may go to a file, to a logger, or nowhere.
func TestGivenTerminalElsewhere(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		for id, streams := range map[string]*keeper.Streams{
			"file": {Stdout: "file://" + r.dir + "/file.txt"}, "logger": logger(r, "l"), "null": {},
		} {
			c := r.container(runtime, id, true, "sh", "-c", "stty -onlcr; seq 3000; exit 6")
			l := c.run(true)
			l.Streams = streams
			r.launch(l)
			if e := r.wait(c.id); e.Code != 6 {
				t.Errorf("%s: exit %+v", id, e)
			}
		}
		text, _ := os.ReadFile(r.dir + "/file.txt")
		checkNumbers(t, string(text), 3000)
		held := func(end string) {
			eventually(t, func() bool {
				text, _ = os.ReadFile(r.dir + "/l.out")
				return strings.HasSuffix(string(text), end)
			})
		}
		held("\n3000\n")
		checkNumbers(t, strings.TrimPrefix(string(text), "l space 2\n"), 3000)
		for _, p := range r.Processes() {
			if err := r.Forget(t.Context(), p.ID); err != nil {
				t.Error(err)
			}
		}
		held("\n3000\nend\n")
	})
}

// A client that does not read holds up only its own container, whose end it
// can read when it comes.
func TestGivenTerminalSlowClient(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		r := start(t)
		const lines = 13000 // more than a FIFO holds, less than with what a terminal holds
		c := r.container(runtime, "a", true, "sh", "-c", fmt.Sprintf("stty -onlcr; seq %d", lines))
		l := c.run(true)
		l.Streams = r.fifos("s")
		r.launch(l)
		other := r.script("b", "exit 4")
		r.launch(other)
		if e := r.wait("b"); e.Code != 4 {
			t.Errorf("exit %+v", e)
		}
		checkNumbers(t, receive(t, follow(t, l.Streams.Stdout)), lines)
		r.wait(c.id)
	})
}
