package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health_v1 "google.golang.org/grpc/health/grpc_health_v1"

	"berth/base/group"
	"berth/face/containerd"
)

// Two protocols through one door, and clients that speak none.
func TestDoor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "door.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	rest := func(ctx context.Context, l net.Listener) error {
		return serveHTTP(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "rest") }))
	}
	engine := func(ctx context.Context, l net.Listener) error {
		return (&containerd.Server{Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}
	g := group.New(ctx)
	g.Go("door", func(ctx context.Context) error { return newDoor(listener).run(ctx, rest, engine) })

	say := func(text string) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for range 20 { // who hold the door and say nothing, or half a word
		say("")
		say("PRI * HT")
	}
	for _, garbage := range []string{"\x00\xff garbage\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n"} {
		conn := say(garbage)
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "400") {
			t.Errorf("%q is answered by %q, %v", garbage, answer, err)
		}
	}
	web := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	answer, err := web.Get("http://berth/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if string(body) != "rest" {
		t.Errorf("rest says %q", body)
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	health, err := health_v1.NewHealthClient(conn).Check(t.Context(), &health_v1.HealthCheckRequest{})
	if err != nil || health.GetStatus() != health_v1.HealthCheckResponse_SERVING {
		t.Errorf("grpc says %v, %v", health, err)
	}
	// HTTP/2 that is garbage behind its preface ends alone.
	bad := say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame at all, not a frame at all")
	_ = bad.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(bad); err != nil {
		t.Errorf("garbage in HTTP/2: %v", err)
	}
	if _, err := health_v1.NewHealthClient(conn).Check(t.Context(), &health_v1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}

	// All of it stops, whoever still hangs on.
	watch, err := health_v1.NewHealthClient(conn).Watch(t.Context(), &health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
