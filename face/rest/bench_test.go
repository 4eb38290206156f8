package rest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"

	"berth/client"
	"berth/node/logfile"
	"berth/spec"
)

func hundred(n *node) {
	for i := range 100 {
		c := containers{n}.one()
		c.Name = fmt.Sprintf("web-%d", i)
		c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=b"}
		c.Config.Labels = map[string]string{"app": "web", "tier": "front", "org.example.revision": "abcdef"}
		c.Args = []string{"sleep", "1000"}
		c.Networks = []spec.Endpoint{{Network: "bridge", Container: id, IPv4: "10.88.0.2/16", MAC: "02:42:ac:11:00:02"}}
		n.list = append(n.list, c)
		s := spec.Stats{ID: id, Name: c.Name, Network: []spec.InterfaceStats{{Name: "eth0", RxBytes: 1 << 40}}}
		n.stats = append(n.stats, s)
	}
}

func benchNode(b *testing.B, n *node) *daemon {
	d := &daemon{node: n, socket: b.TempDir() + "/s"}
	d.serve(b)
	b.Cleanup(func() { d.stop() })
	return d
}

// BenchmarkList: 100 containers, to the last byte.
func BenchmarkList(b *testing.B) { benchGet(b, "/v1/containers?all=true") }

// BenchmarkStats: what 100 containers use.
func BenchmarkStats(b *testing.B) { benchGet(b, "/v1/stats") }

func benchGet(b *testing.B, path string) {
	n := newNode()
	hundred(n)
	c := benchNode(b, n).raw()
	for b.Loop() {
		resp, err := c.Get("http://x" + path)
		if err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp, err)
		}
		size, _ := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		b.SetBytes(size)
	}
}

// BenchmarkAttach: output in lines of 80 bytes, through node and client.
func BenchmarkAttach(b *testing.B) {
	n := newNode()
	line := logfile.Line{Stream: logfile.Stdout, Text: make([]byte, 79)}
	for range 100_000 {
		n.logged = append(n.logged, line)
	}
	n.end()
	c := client.New(benchNode(b, n).socket)
	b.SetBytes(80 * 100_000)
	for b.Loop() {
		if _, err := c.Attach(context.Background(), "web", client.AttachOptions{Stdout: io.Discard, Logs: true}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandler: what putting the API together costs at start.
func BenchmarkHandler(b *testing.B) {
	n := newNode()
	for b.Loop() {
		n.handler(io.Discard)
	}
}
