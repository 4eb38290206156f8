package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"berth/base/errs"
	"berth/spec"
)

func TestParseDetachKeys(t *testing.T) {
	for _, tt := range []struct{ keys, want string }{
		{"", "\x10\x11"},
		{"ctrl-a", "\x01"},
		{"CTRL-Z,q", "\x1aq"},
		{"ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", "\x00\x1b\x1c\x1d\x1e\x1f"},
		{",", ","},
	} {
		if got, err := ParseDetachKeys(tt.keys); err != nil || string(got) != tt.want {
			t.Errorf("%q: %q, %v", tt.keys, got, err)
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-1", "escape", "a,,b", "ctrl-ab"} {
		if _, err := ParseDetachKeys(bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzDetachScanner: however the input is cut, what is passed on is all that
// stands before the keys.
func FuzzDetachScanner(f *testing.F) {
	f.Add([]byte("ab\x10\x11c"), uint8(1))
	f.Add([]byte("\x10\x10\x11"), uint8(2))
	f.Add([]byte("\x10x\x10"), uint8(1))
	f.Fuzz(func(t *testing.T, input []byte, cut uint8) {
		keys := []byte("\x10\x11")
		done := make(chan struct{})
		out := make(chan chunk, len(input)+4)
		readInput(iotest.DataErrReader(cutReader{bytes.NewReader(input), int(cut%7) + 1}), keys, done, out)
		close(out)
		var passed []byte
		var last chunk
		for last = range out {
			passed = append(passed, last.data...)
		}
		before, _, found := bytes.Cut(input, keys)
		if !bytes.Equal(passed, before) || last.detach != found || last.end == found {
			t.Errorf("%q passed on as %q, %+v", input, passed, last)
		}
	})
}

type cutReader struct {
	r *bytes.Reader
	n int
}

func (c cutReader) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.n)]) }

// FuzzRecords: bytes that are no log are an error, never a panic.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("2024-01-02T02:04:05.000000060Z stderr P ab\n"))
	f.Add([]byte("2024-01-02T02:04:05.000000060Z stdout F\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), 16)
		for {
			record, err := readRecord(r)
			if line, e := parseRecord(record); e == nil && bytes.IndexByte(line.Text, '\n') >= 0 {
				t.Errorf("a line with a newline: %q", line.Text)
			}
			if err != nil {
				return
			}
		}
	})
}

func TestLongRecords(t *testing.T) {
	text := strings.Repeat("x", 300_000)
	record, err := readRecord(bufio.NewReader(strings.NewReader("2024-01-02T02:04:05Z stdout F " + text + "\n")))
	if err != nil {
		t.Fatal(err)
	}
	if line, err := parseRecord(record); err != nil || string(line.Text) != text {
		t.Errorf("%d bytes, %v", len(line.Text), err)
	}
}

func TestEvents(t *testing.T) {
	c := New("/nowhere")
	in := "id: 1\ndata: {\"seq\":1}\n\n: a comment\n\nid: 2\r\nevent: problem\ndata: {}\n\nid: 3\n\n"
	var got []serverEvent
	if err := c.eachEvent(t.Context(), strings.NewReader(in), func(e serverEvent) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].id != "1" || string(got[0].data) != `{"seq":1}` || got[1].kind != "problem" || got[2].id != "3" || got[2].data != nil {
		t.Errorf("%+v", got)
	}
}

func TestSocketsThatMayNotBeUsed(t *testing.T) {
	c := New("/run/x.sock")
	denied := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}
	if err := c.unreachable(t.Context(), denied); !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), "group berth") {
		t.Errorf("%v", err)
	}
	for what, err := range map[string]error{
		"refused":                  &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"waited until it was gone": &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
	} {
		if err := c.unreachable(t.Context(), err); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "berth up") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnswersThatAreNotBerths(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	status := http.StatusTeapot
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte("<html>no JSON"))
	}), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	c := New(path)
	for s, want := range map[int]errs.Kind{200: errs.Unavailable, 401: errs.Anonymous, 404: errs.NotFound, 418: errs.Invalid, 500: errs.Internal, 502: errs.Unavailable} {
		status = s
		if _, err := c.Info(t.Context()); errs.KindOf(err) != want {
			t.Errorf("%d: %v", s, err)
		}
	}
	status = 200
	if _, err := c.ImagePull(t.Context(), spec.PullRequest{}, nil); !errors.Is(err, errs.Unavailable) {
		t.Errorf("pull: %v", err)
	}
}

func TestOutliveGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := &goneError{errs.New(errs.Unavailable, "gone")}
		begun, tries := time.Now(), 0
		err := outlive(t.Context(), func(alive func()) error {
			if tries++; tries == 1 {
				alive()
			}
			return gone
		})
		if took := time.Since(begun); !errors.Is(err, errs.Unavailable) || took < patience || took > patience+time.Second {
			t.Errorf("%v after %v", err, took)
		}
		tries = 0
		_ = outlive(t.Context(), func(func()) error { tries++; return gone })
		if tries != 1 {
			t.Errorf("a node that never answered was asked %d times", tries)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := outlive(ctx, func(alive func()) error { alive(); return gone }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		final := errs.New(errs.Unavailable, "the registry is away")
		tries = 0
		if err := outlive(t.Context(), func(alive func()) error { alive(); tries++; return final }); err != final || tries != 1 { //nolint:errorlint // the very error
			t.Errorf("what the node said was asked again: %v", err)
		}
	})
}
