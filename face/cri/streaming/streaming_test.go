package streaming

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// world is a machine with one pod, whose one container has a command: it says
// what it reads, in capitals, on stdout, how much that was on stderr, and ends
// with 3 if that was something.
type world struct {
	mu     sync.Mutex
	sizes  []spec.Size
	killed bool
	ended  chan struct{}
	code   int
	output chan string // of the container

	forgotten []string
}

func newWorld() *world { return &world{ended: make(chan struct{}), output: make(chan string, 10)} }

func (w *world) Pod(id string) (spec.Pod, error) {
	switch id {
	case "pod":
		return spec.Pod{ID: "pod", State: spec.PodReady, NetNS: "/its/net"}, nil
	case "bare":
		return spec.Pod{ID: "bare", State: spec.PodReady}, nil
	case "old":
		return spec.Pod{ID: "old", State: spec.PodNotReady}, nil
	}
	return spec.Pod{}, errs.New(errs.NotFound, "no such pod: %s", id)
}

func (w *world) Container(id string) (spec.PodContainer, error) {
	switch id {
	case "c":
		return spec.PodContainer{ID: "c", Pod: "pod", State: spec.Running}, nil
	case "old":
		return spec.PodContainer{ID: "old", Pod: "pod", State: spec.Stopped}, nil
	}
	return spec.PodContainer{}, errs.New(errs.NotFound, "no such container: %s", id)
}

func (w *world) CreateExec(_ context.Context, ref string, config spec.ExecConfig) (spec.Exec, error) {
	if ref != "k8s.io+c" {
		return spec.Exec{}, errs.New(errs.NotFound, "no such container: %s", ref)
	}
	return spec.Exec{ID: config.Command[0], Config: config}, nil
}

func (w *world) StartExec(_ context.Context, id string) (*container.ExecSession, error) {
	inRead, inWrite := io.Pipe()
	outRead, outWrite := io.Pipe()
	errRead, errWrite := io.Pipe()
	end := sync.OnceFunc(func() { close(w.ended) })
	session := &container.ExecSession{
		ID: "e", Stdin: inWrite, Stdout: outRead, Stderr: errRead,
		CloseStdin: func(context.Context) error { return inWrite.Close() },
		Resize: func(size spec.Size) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sizes = append(w.sizes, size)
			return nil
		},
		Close: func() error { _, _ = outRead.Close(), errRead.Close(); return inRead.Close() },
	}
	switch id {
	case "upper":
		go func() {
			all, _ := io.ReadAll(inRead)
			_, _ = io.WriteString(outWrite, strings.ToUpper(string(all)))
			_, _ = io.WriteString(errWrite, "read "+jsonOf(len(all)))
			_, _ = outWrite.Close(), errWrite.Close()
			if len(all) > 0 {
				w.code = 3
			}
			end()
		}()
	case "much":
		go func() {
			_, _ = outWrite.Write(bytes.Repeat([]byte("x"), mostOutput+100))
			_, _ = outWrite.Close(), errWrite.Close()
			end()
		}()
	case "leave": // a child, that has stdout
		go func() {
			_, _ = io.WriteString(outWrite, "left")
			_ = errWrite.Close()
			end()
		}()
	case "hang":
	case "missing":
		return nil, errs.New(errs.Invalid, "no such file: missing")
	}
	return session, nil
}

func jsonOf(v any) string { text, _ := json.Marshal(v); return string(text) }

func (w *world) WaitExec(ctx context.Context, _ string) (spec.Exec, error) {
	select {
	case <-w.ended:
		return spec.Exec{ID: "e", ExitCode: w.code}, nil
	case <-ctx.Done():
		return spec.Exec{}, ctx.Err()
	}
}

func (w *world) KillExec(context.Context, string, syscall.Signal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.killed {
		close(w.ended)
	}
	w.killed = true
	return nil
}

func (w *world) ForgetExec(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forgotten = append(w.forgotten, id)
}

// Stdin ends the container when it is closed.
func (w *world) Stdin(context.Context, string) (io.WriteCloser, error) { return stdin{w}, nil }

type stdin struct{ *world }

func (s stdin) Write(p []byte) (int, error) {
	s.output <- strings.ToUpper(string(p))
	return len(p), nil
}
func (s stdin) Close() error { close(s.output); return nil }

func (w *world) Resize(_ context.Context, _ string, size spec.Size) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sizes = append(w.sizes, size)
	return nil
}

func (w *world) Output(context.Context, string) (Output, error) { return output{w}, nil }

type output struct{ *world }

func (o output) Close() {}
func (o output) Each(ctx context.Context, fn func(bool, []byte) error) error {
	for {
		select {
		case text, more := <-o.output:
			if !more {
				return nil
			}
			if err := fn(strings.Contains(text, "ERR"), []byte(text)); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// echo stands for a port of the pod: what is sent to it comes back, then it
// ends.
func (w *world) dial(_ context.Context, namespace string, port int) (net.Conn, error) {
	if namespace != "/its/net" || port != 80 {
		return nil, syscall.ECONNREFUSED
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		defer listener.Close()
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}()
	return net.Dial("tcp", listener.Addr().String())
}

func open(t *testing.T, w *world, change func(*Config)) *Server {
	t.Helper()
	c := Config{Containers: w, Pods: w, Ref: func(id string) string { return "k8s.io+" + id }, Dial: w.dial, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("it does not end")
		}
	})
	return s
}

func (s *Server) execURL(t *testing.T, command string, stdin bool) string {
	t.Helper()
	answer, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: "c", Cmd: []string{command}, Stdin: stdin, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetUrl()
}

// spdyStreams opens the streams of a command over SPDY.
func spdyStreams(t *testing.T, at, protocol string, config *tls.Config, kinds ...string) (map[string]httpstream.Stream, httpstream.Connection) {
	t.Helper()
	transport, err := spdy.NewRoundTripper(config)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := transport.NewConnection(response)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	all := map[string]httpstream.Stream{}
	for _, kind := range kinds {
		if all[kind], err = conn.CreateStream(streamHeader(kind)); err != nil {
			t.Fatal(err)
		}
	}
	return all, conn
}

func streamHeader(kind string) http.Header {
	header := http.Header{}
	header.Set("streamType", kind)
	header.Set("port", "80")
	header.Set("requestID", "1")
	return header
}

// said reads streams to their ends, all at once: the library holds back the data
// of some while that of others is not read.
func said(t *testing.T, all map[string]httpstream.Stream, kinds ...string) map[string]string {
	t.Helper()
	texts := make([]string, len(kinds))
	var reading sync.WaitGroup
	for i, kind := range kinds {
		reading.Go(func() {
			text, err := io.ReadAll(all[kind])
			if err != nil {
				t.Error(err)
			}
			texts[i] = string(text)
		})
	}
	reading.Wait()
	got := map[string]string{}
	for i, kind := range kinds {
		got[kind] = texts[i]
	}
	return got
}

func TestExecOverSPDY(t *testing.T) {
	s := open(t, newWorld(), nil)
	all, _ := spdyStreams(t, s.execURL(t, "upper", true), "v4.channel.k8s.io", nil, "error", "stdin", "stdout", "stderr")
	_, _ = io.WriteString(all["stdin"], "hello")
	_ = all["stdin"].Close()
	got := said(t, all, "stdout", "stderr", "error")
	if got["stdout"] != "HELLO" || got["stderr"] != "read 5" || !strings.Contains(got["error"], `"reason":"ExitCode","message":"3"`) {
		t.Errorf("it said %q", got)
	}
}

// frames reads a websocket to its end and returns what came on each channel.
func frames(t *testing.T, conn *websocket.Conn) map[byte]string {
	t.Helper()
	all := map[byte]string{}
	for {
		_, data, err := conn.Read(t.Context())
		if err != nil {
			return all
		}
		all[data[0]] += string(data[1:])
	}
}

func dialChannels(t *testing.T, at, protocol string) *websocket.Conn {
	t.Helper()
	conn, response, err := websocket.Dial(t.Context(), at, &websocket.DialOptions{Subprotocols: []string{protocol}})
	if err != nil {
		t.Fatal(err)
	}
	if response.Body != nil {
		_ = response.Body.Close()
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

func TestExecOverWebSocketWhoseClientEndsStdin(t *testing.T) {
	s := open(t, newWorld(), nil)
	conn := dialChannels(t, s.execURL(t, "upper", true), "v5.channel.k8s.io")
	for _, frame := range []string{"\x00hel", "\x00lo", "\xff\x00"} {
		if err := conn.Write(t.Context(), websocket.MessageBinary, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	got := frames(t, conn)
	if got[1] != "HELLO" || got[2] != "read 5" || !strings.Contains(got[3], `"message":"3"`) || !strings.Contains(got[3], `"Failure"`) {
		t.Errorf("%q", got)
	}
}

func TestExecThatCannotStart(t *testing.T) {
	s := open(t, newWorld(), nil)
	got := frames(t, dialChannels(t, s.execURL(t, "missing", false), "v5.channel.k8s.io"))
	if !strings.Contains(got[3], "no such file") || !strings.Contains(got[3], "InternalError") {
		t.Errorf("%q", got)
	}
	got = frames(t, dialChannels(t, s.execURL(t, "missing", false), "v4.channel.k8s.io"))
	if !strings.Contains(got[3], "no such file") {
		t.Errorf("%q", got)
	}
}

func TestExecEndsThoughAChildHoldsItsOutput(t *testing.T) {
	s := open(t, newWorld(), nil)
	got := frames(t, dialChannels(t, s.execURL(t, "leave", false), "v5.channel.k8s.io"))
	if got[1] != "left" || !strings.Contains(got[3], `"Success"`) {
		t.Errorf("%q", got)
	}
}

func TestTerminalGetsItsSizes(t *testing.T) {
	w := newWorld()
	s := open(t, w, nil)
	answer, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: "c", Cmd: []string{"upper"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := dialChannels(t, answer.GetUrl(), "v5.channel.k8s.io")
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("\x04{\"Width\":100,\"Height\":30}")); err != nil {
		t.Fatal(err)
	}
	for {
		w.mu.Lock()
		sizes := append([]spec.Size(nil), w.sizes...)
		w.mu.Unlock()
		if len(sizes) > 0 {
			if sizes[0] != (spec.Size{Rows: 30, Cols: 100}) {
				t.Errorf("size %v", sizes[0])
			}
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("no size")
		}
	}
}

func TestAttach(t *testing.T) {
	for _, protocol := range []string{"spdy", "v5.channel.k8s.io"} {
		s := open(t, newWorld(), nil)
		answer, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr string
		if protocol == "spdy" {
			all, _ := spdyStreams(t, answer.GetUrl(), "v4.channel.k8s.io", nil, "error", "stdin", "stdout", "stderr")
			for _, text := range []string{"out", "err"} {
				_, _ = io.WriteString(all["stdin"], text)
				buffer := make([]byte, 3)
				from := map[string]string{"out": "stdout", "err": "stderr"}[text]
				if _, err := io.ReadFull(all[from], buffer); err != nil {
					t.Fatal(err)
				}
			}
			_ = all["stdin"].Close()
			got := said(t, all, "stdout", "stderr", "error")
			stdout, stderr = "OUT"+got["stdout"], "ERR"+got["stderr"]
		} else {
			conn := dialChannels(t, answer.GetUrl(), protocol)
			for _, frame := range []string{"\x00out", "\x00err", "\xff\x00"} {
				if err := conn.Write(t.Context(), websocket.MessageBinary, []byte(frame)); err != nil {
					t.Fatal(err)
				}
			}
			got := frames(t, conn)
			stdout, stderr = got[1], got[2]
		}
		if stdout != "OUT" || stderr != "ERR" {
			t.Errorf("%s: stdout %q, stderr %q", protocol, stdout, stderr)
		}
	}
}

// mute is a machine whose containers were made without a stdin.
type mute struct{ *world }

func (mute) Stdin(context.Context, string) (io.WriteCloser, error) {
	return nil, errs.New(errs.Conflict, "made without an open stdin")
}

// kubectl attach -i shows what a container without stdin says.
func TestAttachWithoutStdin(t *testing.T) {
	w := newWorld()
	s := open(t, w, func(c *Config) { c.Containers = mute{w} })
	answer, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	all, _ := spdyStreams(t, answer.GetUrl(), "v4.channel.k8s.io", nil, "error", "stdin", "stdout", "stderr")
	if _, err := io.WriteString(all["stdin"], "nobody reads this"); err != nil {
		t.Error(err)
	}
	w.output <- "out"
	close(w.output)
	if got := said(t, all, "stdout", "stderr", "error"); got["stdout"] != "out" {
		t.Errorf("it said %q", got)
	}
}

func portURL(t *testing.T, s *Server) string {
	t.Helper()
	answer, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetUrl()
}

func TestPortOverSPDY(t *testing.T) {
	s := open(t, newWorld(), nil)
	all, _ := spdyStreams(t, portURL(t, s), "portforward.k8s.io", nil, "error", "data")
	echoes(t, all)
}

func echoes(t *testing.T, all map[string]httpstream.Stream) {
	t.Helper()
	body := strings.Repeat("0123456789", 100_000)
	go func() {
		_, _ = io.WriteString(all["data"], body)
		_ = all["data"].Close()
	}()
	got := said(t, all, "data", "error")
	if got["data"] != body {
		t.Errorf("got %d bytes back, want %d", len(got["data"]), len(body))
	}
	if got["error"] != "" {
		t.Error(got["error"])
	}
}

func TestPortOverSPDYInAWebSocket(t *testing.T) {
	s := open(t, newWorld(), nil)
	socket := dialChannels(t, portURL(t, s), "SPDY/3.1+portforward.k8s.io")
	socket.SetReadLimit(-1)
	conn, err := spdy.NewClientConnection(websocket.NetConn(t.Context(), socket, websocket.MessageBinary))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]httpstream.Stream{}
	for _, kind := range []string{"error", "data"} {
		if all[kind], err = conn.CreateStream(http.Header{"Streamtype": {kind}, "Port": {"80"}, "Requestid": {"1"}}); err != nil {
			t.Fatal(err)
		}
	}
	echoes(t, all)
}

// A pod whose network is not there does not lead to the host's.
func TestPortOfAPodWithoutItsNetwork(t *testing.T) {
	s := open(t, newWorld(), func(c *Config) {
		c.Dial = func(_ context.Context, namespace string, _ int) (net.Conn, error) {
			t.Errorf("it dials in %q", namespace)
			return nil, syscall.ECONNREFUSED
		}
	})
	if err := s.forward(t.Context(), "bare", 22, nil); errs.KindOf(err) != errs.Conflict {
		t.Error(err)
	}
}

func TestPortThatNobodyListensOn(t *testing.T) {
	s := open(t, newWorld(), func(c *Config) {
		c.Dial = func(context.Context, string, int) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	})
	all, conn := spdyStreams(t, portURL(t, s), "portforward.k8s.io", nil, "error")
	_, _ = conn.CreateStream(streamHeader("data")) // may be over before it is known to have begun
	if got, _ := io.ReadAll(all["error"]); !strings.Contains(string(got), "refused") {
		t.Errorf("%q", got)
	}
}

// A client that goes away leaves nothing behind: Run ends in time, as open's
// cleanup sees.
func TestClientGoesAway(t *testing.T) {
	w := newWorld()
	s := open(t, w, nil)
	conn := dialChannels(t, s.execURL(t, "hang", false), "v5.channel.k8s.io")
	_ = conn.CloseNow()
	_, spdyConn := spdyStreams(t, s.execURL(t, "hang", false), "v4.channel.k8s.io", nil, "error", "stdout", "stderr")
	_ = spdyConn.Close()
	s.pumps.Wait()
}

func TestTLS(t *testing.T) {
	certificate := selfSigned(t)
	s := open(t, newWorld(), func(c *Config) {
		c.TLS, c.Advertise = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}, "localhost"
	})
	at := s.execURL(t, "upper", true)
	if !strings.HasPrefix(at, "https://localhost:") {
		t.Fatal(at)
	}
	all, _ := spdyStreams(t, at, "v4.channel.k8s.io", &tls.Config{InsecureSkipVerify: true}, "error", "stdin", "stdout", "stderr") //nolint:gosec // of this test
	_ = all["stdin"].Close()
	if got := said(t, all, "stdout", "stderr", "error"); got["stderr"] != "read 0" {
		t.Errorf("it said %q", got)
	}
}

func TestURLsServeOnce(t *testing.T) {
	s := open(t, newWorld(), func(c *Config) { c.Addr = "[::1]:0" })
	at := s.execURL(t, "leave", false)
	if !strings.HasPrefix(at, "http://[::1]:") {
		t.Fatal(at)
	}
	frames(t, dialChannels(t, at, "v5.channel.k8s.io"))
	for _, url := range []string{at, s.base.String() + "/exec/none", strings.Replace(s.execURL(t, "leave", false), "/exec/", "/attach/", 1)} {
		response, err := http.Get(url) //nolint:gosec // of this test
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", url, response.Status)
		}
	}
}

func TestTicketsGrowOldAndAreNotTooMany(t *testing.T) {
	s := tickets{all: map[string]ticket{}}
	for range mostTickets {
		if _, err := s.add(ticket{kind: "exec"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.add(ticket{}); !errors.Is(err, errs.Exhausted) {
		t.Error(err)
	}
	for token, old := range s.all {
		old.issued = old.issued.Add(-2 * ticketAge)
		s.all[token] = old
	}
	token, err := s.add(ticket{kind: "exec"})
	if err != nil || len(s.all) != 1 {
		t.Errorf("%d tickets, %v", len(s.all), err)
	}
	if _, ok := s.take("exec", token); !ok {
		t.Error("a new one is not taken")
	}
}

func TestWhatIsRefused(t *testing.T) {
	s := open(t, newWorld(), nil)
	for _, c := range []struct {
		request *cri.ExecRequest
		kind    errs.Kind
	}{
		{&cri.ExecRequest{ContainerId: "none", Cmd: []string{"x"}, Stdout: true}, errs.NotFound},
		{&cri.ExecRequest{ContainerId: "old", Cmd: []string{"x"}, Stdout: true}, errs.Conflict},
		{&cri.ExecRequest{ContainerId: "c", Stdout: true}, errs.Invalid},
		{&cri.ExecRequest{ContainerId: "c", Cmd: []string{"x"}}, errs.Invalid},
		{&cri.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stderr: true, Tty: true}, errs.Invalid},
	} {
		if _, err := s.Exec(t.Context(), c.request); !errors.Is(err, c.kind) {
			t.Errorf("%v: %v, want %s", c.request.GetContainerId(), err, c.kind)
		}
	}
	for id, kind := range map[string]errs.Kind{"none": errs.NotFound, "old": errs.Conflict} {
		if _, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: id}); !errors.Is(err, kind) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestExecSync(t *testing.T) {
	s := open(t, newWorld(), nil)
	got, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"leave"}})
	if err != nil || string(got.GetStdout()) != "left" || got.GetExitCode() != 0 {
		t.Errorf("%v, %v", got, err)
	}
	s = open(t, newWorld(), nil)
	if got, err = s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"much"}}); err != nil || len(got.GetStdout()) != mostOutput {
		t.Errorf("%d bytes, %v", len(got.GetStdout()), err)
	}
	w := newWorld()
	s = open(t, w, nil)
	if _, err = s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"hang"}, Timeout: 1}); !errors.Is(err, errs.Timeout) || !w.killed {
		t.Errorf("%v, killed %v", err, w.killed)
	}
	_, _ = s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"missing"}})
	if want := []string{"hang", "missing"}; !slices.Equal(w.forgotten, want) {
		t.Errorf("forgotten: %v, want %v", w.forgotten, want)
	}
	w = newWorld()
	s = open(t, w, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	// As nanoseconds these are more than there can be, and 0.3 s where that is not seen.
	const ages = 18446744074
	if _, err = s.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"hang"}, Timeout: ages}); !errors.Is(err, context.DeadlineExceeded) || !w.killed {
		t.Errorf("%v, killed %v", err, w.killed)
	}
}
