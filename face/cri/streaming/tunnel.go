package streaming

import (
	"bufio"
	"net"
	"net/http"

	"github.com/coder/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// serveTunnel serves ports over SPDY within a WebSocket: to the library that
// is a connection whose client asked for SPDY.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, t ticket) {
	socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}})
	if err != nil {
		s.Log.DebugContext(r.Context(), "a client's websocket", "error", err)
		return
	}
	defer socket.CloseNow() //nolint:errcheck // closed properly when all went well
	socket.SetReadLimit(-1)
	inner := r.Clone(r.Context())
	inner.Header = http.Header{}
	inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
	within := &tunnel{conn: websocket.NetConn(r.Context(), socket, websocket.MessageBinary), header: http.Header{}}
	portforward.ServePortForward(within, inner, forwarder{s, r.Context()}, t.id, "", nil, idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

// tunnel answers a request that is agreed on already: there is only its
// connection to be had.
type tunnel struct {
	conn   net.Conn
	header http.Header
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }
func (t *tunnel) WriteHeader(int)             {}

func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
