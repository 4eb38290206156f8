package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// idleTimeout is after how long a client is let go that neither sends nor gets
// anything.
const idleTimeout = 4 * time.Hour

// creationTimeout is how long a client may take to open its streams.
const creationTimeout = 30 * time.Second

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for kind, serve := range map[string]func(http.ResponseWriter, *http.Request, ticket){
		"exec": s.serveExec, "attach": s.serveAttach, "portforward": s.servePorts,
	} {
		handle := func(w http.ResponseWriter, r *http.Request) {
			leave, ok := s.enter()
			if !ok {
				http.Error(w, "the node is about to end", http.StatusServiceUnavailable)
				return
			}
			defer leave()
			t, ok := s.tickets.take(kind, r.PathValue("token"))
			if !ok {
				http.NotFound(w, r)
				return
			}
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			serve(&watched{ResponseWriter: w, ctx: ctx, gone: cancel, pumps: &s.pumps}, r.WithContext(ctx), t)
		}
		mux.HandleFunc("GET /"+kind+"/{token}", handle)
		mux.HandleFunc("POST /"+kind+"/{token}", handle)
	}
	return mux
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, t ticket) {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveChannels(w, r, t, func(in streams) error { return s.exec(r.Context(), t, in) })
		return
	}
	remotecommand.ServeExec(w, r, process{s, t}, "", "", t.id, t.command, t.options(), idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, t ticket) {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveChannels(w, r, t, func(in streams) error { return s.attach(r.Context(), t, in) })
		return
	}
	remotecommand.ServeAttach(w, r, process{s, t}, "", "", t.id, t.options(), idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePorts(w http.ResponseWriter, r *http.Request, t ticket) {
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		s.serveTunnel(w, r, t)
		return
	}
	ports, err := portforward.BuildV4Options(t.ports)
	if err != nil && wsstream.IsWebSocketRequest(r) { // it cannot name its ports otherwise
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, forwarder{s, r.Context()}, t.id, "", ports, idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

func (t ticket) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: t.stdin, Stdout: t.stdout, Stderr: t.stderr, TTY: t.tty}
}

// streams are a client's end.
type streams struct {
	stdin          io.Reader // nil where it was not asked for
	stdout, stderr io.Writer // likewise
	resize         <-chan remotecommand.TerminalSize
}

// only leaves out what was not asked for.
func (t ticket) only(stdin io.Reader, stdout, stderr io.Writer, resize <-chan remotecommand.TerminalSize) streams {
	in := streams{resize: resize}
	if t.stdin {
		in.stdin = stdin
	}
	if t.stdout {
		in.stdout = stdout
	}
	if t.stderr && !t.tty {
		in.stderr = stderr
	}
	return in
}

// process is a ticket as the library takes it.
type process struct {
	*Server
	ticket
}

func (p process) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return p.exec(ctx, p.ticket, p.only(in, out, err, resize))
}

func (p process) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return p.attach(ctx, p.ticket, p.only(in, out, err, resize))
}

// forwarder connects streams with ports, as the library asks for it; ctx ends
// when the client has gone, which the library's does not.
type forwarder struct {
	*Server
	ctx context.Context //nolint:containedctx // as said
}

func (f forwarder) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	if err := f.forward(f.ctx, pod, int(port), stream); err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, pod, err)
	}
	return nil
}
