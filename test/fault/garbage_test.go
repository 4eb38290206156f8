package fault

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/spec"
)

// TestHuge makes containers with far more of everything than is sane.
func TestHuge(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	labels, mounts := map[string]string{}, []spec.MountPoint{}
	for i := range 10_000 {
		labels[fmt.Sprintf("label.%d", i)] = "value"
	}
	for i := range 200 {
		mounts = append(mounts, spec.MountPoint{Type: "tmpfs", Target: fmt.Sprintf("/t/%d", i)})
	}
	var env []string
	for i := range 10 {
		env = append(env, fmt.Sprintf("V%d=%s", i, strings.Repeat("v", 100_000)))
	}
	for name, c := range map[string]struct {
		config spec.ContainerConfig
		runs   bool
	}{
		"labels":      {spec.ContainerConfig{Labels: labels}, true},
		"mounts":      {spec.ContainerConfig{Mounts: mounts}, true},
		"environment": {spec.ContainerConfig{Env: env}, true},
		// The kernel takes 128 KiB, and says so when the command is run.
		"one variable": {spec.ContainerConfig{Env: []string{"V=" + strings.Repeat("v", 1<<20)}}, true},
		"argument":     {spec.ContainerConfig{Command: []string{"true", strings.Repeat("a", 1<<20)}}, true},
		"hostname":     {spec.ContainerConfig{Hostname: strings.Repeat("h", 1000)}, false},
		"name":         {spec.ContainerConfig{Name: strings.Repeat("n", 100_000)}, false},
		"user":         {spec.ContainerConfig{User: strings.Repeat("9", 1000)}, false},
		"folder":       {spec.ContainerConfig{WorkDir: "/" + strings.Repeat("d/", 5000)}, false},
	} {
		c.config.Image = image
		if c.config.Command == nil {
			c.config.Command = []string{"true"}
		}
		if err := n.life(t, c.config); (err == nil) != c.runs {
			t.Errorf("%s: %.500v", name, err)
		} else if err != nil && len(err.Error()) > 2000 {
			t.Errorf("%s: the error is %d bytes long: %.300v", name, len(err.Error()), err)
		}
	}
	n.same(t, before)
	n.works(t)
}

// life makes, starts and removes a container.
func (n *node) life(t *testing.T, config spec.ContainerConfig) error {
	t.Helper()
	c, err := n.ContainerCreate(t.Context(), config)
	if err != nil {
		return err
	}
	err = n.ContainerStart(t.Context(), c.ID)
	return errors.Join(err, n.ContainerRemove(t.Context(), c.ID, true, true))
}

// TestGarbage sends what is no request to the node's socket and the keeper's.
func TestGarbage(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sleeper(t, "c")
	before, held := n.inventory(t), n.held(t)
	noise := make([]byte, 1<<16)
	_, _ = rand.Read(noise)
	upgrade := "HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	messages := map[string][]byte{
		"noise":      noise,
		"nothing":    {},
		"zeros":      make([]byte, 1<<20),
		"half":       []byte("POST /v1/containers HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"),
		"deep":       request("POST", "/v1/containers", bytes.Repeat([]byte(`{"a":`), 100_000)),
		"list":       request("POST", "/v1/containers", []byte(`[]`)),
		"wrong type": request("POST", "/v1/containers", []byte(`{"image":7,"labels":[]}`)),
		"no JSON":    request("PUT", "/v1/containers/c/archive?path=/", noise),
		"long path":  request("GET", "/v1/containers/"+strings.Repeat("a", 500_000), nil),
		"long head":  []byte("GET /v1/info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 3<<20)),
		"http2":      []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(noise)),
		"attach":     append([]byte("GET /v1/containers/c/attach?stdin=true "+upgrade), noise...),
		"numbers":    request("GET", "/v1/containers/c/logs?tail=999999999999999999999&since=-&follow=maybe", nil),
		"chunks":     []byte("POST /v1/images/load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"),
	}
	var all sync.WaitGroup
	for name, message := range messages {
		for range 3 {
			all.Go(func() {
				if got := n.send(t, "unix", n.Socket, message); bytes.Contains(got, []byte(" 500 ")) {
					t.Errorf("%s: %.1000s", name, got)
				}
			})
		}
	}
	all.Wait()
	sockets, _ := filepath.Glob(filepath.Join(n.State, "*.sock"))
	for _, socket := range sockets {
		for _, message := range messages {
			if socket != n.Socket {
				n.send(t, "unixpacket", socket, message[:min(len(message), 100_000)])
			}
		}
	}
	n.ok(t, "exec", "c", "true")
	n.same(t, before)
	n.holds(t, held)
	n.ok(t, "rm", "-f", "c")
	n.works(t)
}

func request(method, path string, body []byte) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
}

// send writes a message to a socket and reads what comes back, for a little.
func (n *node) send(t *testing.T, network, socket string, message []byte) []byte {
	t.Helper()
	conn, err := net.Dial(network, socket)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) && network == "unix" {
			t.Error(err)
		}
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, _ = conn.Write(message)
	answer := make([]byte, 4096)
	size, _ := conn.Read(answer)
	return answer[:size]
}
