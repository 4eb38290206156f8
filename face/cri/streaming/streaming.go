// Package streaming carries bytes between clients of the CRI and containers:
// commands with their input and output, what a container reads and writes, and
// connections to the ports of a pod. A call of Exec, Attach or PortForward
// answers with a URL; who asks for that URL, within a minute and once, gets the
// streams.
//
// They run over SPDY, over WebSocket with channels (channel.k8s.io and its
// later versions up to v5, whose clients can end stdin alone), and a port also
// over SPDY within a WebSocket. A client that goes away ends what it began
// here, but no process: that sees its input or output closed.
package streaming

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// Containers run commands; see Of. A ref is Config.Ref's.
type Containers interface {
	CreateExec(ctx context.Context, ref string, config spec.ExecConfig) (spec.Exec, error)
	StartExec(ctx context.Context, id string) (*container.ExecSession, error)
	WaitExec(ctx context.Context, id string) (spec.Exec, error)
	KillExec(ctx context.Context, id string, sig syscall.Signal) error
	// ForgetExec: nobody asks for it any more. It is forgotten when it has ended.
	ForgetExec(id string)

	Stdin(ctx context.Context, ref string) (io.WriteCloser, error)
	Resize(ctx context.Context, ref string, size spec.Size) error
	Output(ctx context.Context, ref string) (Output, error)
}

// Output is what a container writes, from when it was asked for.
type Output interface {
	// Each gives fn all of it, until the container has ended, ctx is done or fn
	// fails. What is in data is fn's only until that returns.
	Each(ctx context.Context, fn func(stderr bool, data []byte) error) error
	Close()
}

// Of makes Containers of the node's.
func Of(set *container.Set) Containers { return those{set} }

type those struct{ *container.Set }

func (t those) Output(ctx context.Context, ref string) (Output, error) {
	return t.Set.Output(ctx, ref)
}

// Pods are the node's pods and their containers.
type Pods interface {
	Pod(id string) (spec.Pod, error)
	Container(id string) (spec.PodContainer, error)
}

// Config says where a Server listens and what it leads to.
type Config struct {
	Addr      string // host:port; port 0 for any
	Advertise string // host or host:port of the URLs, where it is not Addr
	TLS       *tls.Config

	Containers Containers
	Pods       Pods
	// Ref is how Containers know a container of a pod.
	Ref func(id string) string
	// Dial connects to a TCP port within a network namespace; "" is the host's.
	Dial func(ctx context.Context, namespace string, port int) (net.Conn, error)

	Log *slog.Logger
}

// Server hands out URLs and serves them.
type Server struct {
	Config
	listener net.Listener
	base     url.URL
	tickets  tickets
	door     sync.Mutex
	closed   bool            // nobody is let in any more
	pumps    sync.WaitGroup  // whatever serves a client
	life     context.Context //nolint:containedctx // streams end with it
	end      context.CancelFunc
}

// LeadLog has the library that speaks SPDY write to log, all of it as debugging:
// what it calls errors is what clients did and were told. It has one log for the
// whole process: this is to be called once, before any stream is there.
func LeadLog(log *slog.Logger) { klog.SetSlogLogger(slog.New(muted{log.Handler()})) }

// muted writes everything as debugging.
type muted struct{ slog.Handler }

func (m muted) Enabled(ctx context.Context, _ slog.Level) bool {
	return m.Handler.Enabled(ctx, slog.LevelDebug)
}

func (m muted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return m.Handler.Handle(ctx, r)
}

func (m muted) WithAttrs(attrs []slog.Attr) slog.Handler { return muted{m.Handler.WithAttrs(attrs)} }
func (m muted) WithGroup(name string) slog.Handler       { return muted{m.Handler.WithGroup(name)} }

// Open listens. The server's life is ctx's; Run has to come next.
func Open(ctx context.Context, config Config) (*Server, error) {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", cmp.Or(config.Addr, "127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	s := &Server{Config: config, listener: listener, tickets: tickets{all: map[string]ticket{}}}
	s.base = url.URL{Scheme: "http", Host: advertised(config.Advertise, listener.Addr())}
	if config.TLS != nil {
		s.listener, s.base.Scheme = tls.NewListener(listener, config.TLS), "https"
	}
	s.life, s.end = context.WithCancel(ctx)
	return s, nil
}

// advertised is what clients find the listener by.
func advertised(advertise string, at net.Addr) string {
	_, port, err := net.SplitHostPort(at.String())
	if advertise == "" || err != nil {
		return at.String()
	}
	if _, _, err := net.SplitHostPort(advertise); err == nil {
		return advertise
	}
	return net.JoinHostPort(advertise, port)
}

// headerTimeout bounds how long a client takes to say what it wants.
const headerTimeout = 30 * time.Second

// Run serves until ctx ends; then all streams end too.
func (s *Server) Run(ctx context.Context) error {
	defer s.pumps.Wait()
	defer s.close()
	server := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headerTimeout, IdleTimeout: headerTimeout, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return s.life },
		// Streams are upgrades of HTTP/1.1.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:     slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { s.close(); _ = server.Close() })
	defer stop()
	if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}

// enter says whether a client is served; leave then ends that.
func (s *Server) enter() (leave func(), ok bool) {
	s.door.Lock()
	defer s.door.Unlock()
	if s.closed {
		return nil, false
	}
	s.pumps.Add(1)
	return s.pumps.Done, true
}

func (s *Server) close() {
	s.door.Lock()
	s.closed = true
	s.door.Unlock()
	s.end()
}

// Exec answers with the URL of a command's streams.
func (s *Server) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, errs.New(errs.Invalid, "exec in container %s: no command", r.GetContainerId())
	}
	at, err := s.issue("exec", r.GetContainerId(), r.GetCmd(), flags{r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty()})
	return &cri.ExecResponse{Url: at}, err
}

// Attach answers with the URL of what a container reads and writes.
func (s *Server) Attach(_ context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	at, err := s.issue("attach", r.GetContainerId(), nil, flags{r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty()})
	return &cri.AttachResponse{Url: at}, err
}

// PortForward answers with the URL of connections to a pod's ports.
func (s *Server) PortForward(_ context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	p, err := s.Pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if p.State != spec.PodReady {
		return nil, errs.New(errs.Conflict, "pod %s is not running", p.ID)
	}
	at, err := s.link(ticket{kind: "portforward", id: p.ID, ports: r.GetPort()})
	return &cri.PortForwardResponse{Url: at}, err
}

// flags say which streams are wanted.
type flags struct{ stdin, stdout, stderr, tty bool }

func (s *Server) issue(kind, id string, command []string, wants flags) (string, error) {
	switch {
	case wants.tty && wants.stderr:
		return "", errs.New(errs.Invalid, "%s: a terminal has no stderr of its own", kind)
	case !wants.stdin && !wants.stdout && !wants.stderr:
		return "", errs.New(errs.Invalid, "%s: at least one of stdin, stdout and stderr is needed", kind)
	}
	c, err := s.running(id)
	if err != nil {
		return "", err
	}
	return s.link(ticket{kind: kind, id: c.ID, command: command, flags: wants})
}

// running finds a container that runs.
func (s *Server) running(id string) (spec.PodContainer, error) {
	c, err := s.Pods.Container(id)
	if err == nil && c.State != spec.Running {
		err = errs.New(errs.Conflict, "container %s is not running, it is %s", c.ID, c.State)
	}
	return c, err
}

func (s *Server) link(t ticket) (string, error) {
	token, err := s.tickets.add(t)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(t.kind, token).String(), nil
}
