package rest_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"berth/node/container"
	"berth/spec"
)

// FuzzRequests: whatever is asked, the answer is one of ours, and no panic.
func FuzzRequests(f *testing.F) {
	for _, seed := range []struct{ method, path, body string }{
		{"POST", "/v1/containers", `{"image":"a","env":["A=b"]}`},
		{"PATCH", "/v1/containers/a", `{"resources":{"memory":-1}}`},
		{"POST", "/v1/containers/%2e%2e/stop?timeout=99999999999999999999", ""},
		{"PUT", "/v1/networks/n/containers/c", `{"network":null}`},
		{"GET", "/v1/containers/x/archive?path=%00", ""},
		{"GET", "/v1/events?since=0001-01-01T00:00:00Z&until=2000-01-01T00:00:00Z", ""},
		{"POST", "/v1/images/pull", `{"reference":"` + strings.Repeat("[", 1000) + `"}`},
	} {
		f.Add(seed.method, seed.path, seed.body)
	}
	n := newNode()
	n.end()
	var log syncBuffer
	h := n.handler(&log)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://x/", strings.NewReader(body))
		if err != nil {
			return
		}
		req.URL = u
		w := httptest.NewRecorder()
		func() {
			defer func() {
				if v := recover(); v != nil && v != any(http.ErrAbortHandler) {
					panic(v)
				}
			}()
			h.ServeHTTP(w, req)
		}()
		if strings.Contains(log.String(), "panicked") {
			t.Fatalf("%s %s %q: %s", method, path, body, log.String())
		}
	})
}

// FuzzFrames: whatever a client sends on a WebSocket, the node goes on.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 'a'}, []byte{255, 0})
	f.Add([]byte{4}, []byte(`{"rows":1}`))
	f.Add([]byte{}, []byte{9, 9, 9})
	f.Add([]byte{255}, []byte{255, 1})
	f.Add(append([]byte{4}, `{"rows":70000,"cols":-1}`...), []byte{3, '{', '}'})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		n := newNode()
		n.exec = func() *container.ExecSession { close(n.execEnd); return &container.ExecSession{ID: "e1"} }
		srv := httptest.NewServer(n.handler(io.Discard))
		defer srv.Close()
		for _, path := range []string{"/v1/containers/web/attach?stdin=true", "/v1/execs/e1/attach?stdin=true"} {
			if strings.Contains(path, "containers") {
				n.write()
			}
			conn, _, err := websocket.Dial(t.Context(), srv.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Write(t.Context(), websocket.MessageBinary, a)
			_ = conn.Write(t.Context(), websocket.MessageText, b)
			if strings.Contains(path, "containers") {
				n.end()
			}
			for {
				if _, _, err := conn.Read(t.Context()); err != nil {
					break
				}
			}
			_ = conn.CloseNow()
		}
		resp, err := http.Get(srv.URL + "/v1/ping")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("after %q and %q: %v %v", a, b, resp, err)
		}
		_ = resp.Body.Close()
	})
}

func TestBrokenFramesCloseTheSocket(t *testing.T) {
	n := newNode()
	srv := httptest.NewServer(n.handler(io.Discard))
	defer srv.Close()
	for _, frame := range [][]byte{{}, {byte(spec.ChannelStdout), 'x'}, append([]byte{4}, "{{{"...), {255, 7}} {
		conn, _, err := websocket.Dial(t.Context(), srv.URL+"/v1/containers/web/attach?stdin=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Write(t.Context(), websocket.MessageBinary, frame)
		for err == nil {
			_, _, err = conn.Read(t.Context())
		}
		if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
			t.Errorf("%q: %v", frame, err)
		}
	}
}
