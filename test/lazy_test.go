package test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registrytest"
)

// piece is a file of the lazy image, and what sha256sum says of it.
func piece(n int) (name string, body []byte, sum string) {
	body = registrytest.Noise(uint64(n), 600_000)
	hash := sha256.Sum256(body)
	return fmt.Sprintf("data/%02d", n), body, hex.EncodeToString(hash[:])
}

const pieces = 40

// lazyImage has a shell in one layer and pieces in another.
func lazyImage(t *testing.T) registrytest.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox, linked statically")
	}
	program := []registrytest.File{{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(busybox)}}
	for _, name := range []string{"sh", "cat", "sha256sum", "sleep", "mount", "mkdir"} {
		program = append(program, registrytest.File{Header: tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}})
	}
	var data []registrytest.File
	for n := range pieces {
		name, body, _ := piece(n)
		data = append(data, registrytest.File{Header: tar.Header{Name: name}, Body: string(body)})
	}
	return registrytest.Make(t, []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, program...)), registrytest.Gzip(t, registrytest.Tar(t, data...)),
	}, registrytest.Runs(ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}))
}

// objects counts the bodies that the node has.
func (n *node) objects() int {
	found, _ := filepath.Glob(n.root + "/objects/??/*")
	return len(found)
}

// only lets through what is asked for because somebody waits for it: short
// parts of blobs.
func only(short int64) func(*http.Request) bool {
	blobs := registrytest.Blobs()
	return func(r *http.Request) bool {
		var from, to int64
		if !blobs(r) {
			return false
		}
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil && to-from < short {
			return false
		}
		return r.Header.Get("Range") != "" || !strings.Contains(r.URL.Path, "config")
	}
}

// An image that was here before is usable at once when it comes again: while
// most of it is missing, after the node was killed, and in the end as any
// other. Who may mount overlays of his own waits.
func TestLazyStart(t *testing.T) {
	registry := registrytest.New(t)
	image := lazyImage(t)
	registry.Push(t, "lazy", "1", image)
	name := registry.Host() + "/lazy:1"
	n := newNode(t)
	if driver := n.must(t, "info", "--format", "{{.Snapshotter}}"); !strings.HasPrefix(driver, "lcfs") {
		t.Skipf("bodies cannot be missing on driver %s", driver)
	}
	n.must(t, "pull", "-q", name)
	n.eventually(t, "tables of contents are kept", func() error {
		if found, _ := filepath.Glob(n.root + "/indexes/sha256-*"); len(found) != 2 {
			return fmt.Errorf("%d", len(found))
		}
		return nil
	})
	before := n.objects()
	n.must(t, "rmi", name)
	n.eventually(t, "the image's bodies are swept", func() error {
		if left := n.objects(); left > before-pieces {
			return fmt.Errorf("%d of %d left", left, before)
		}
		return nil
	})

	let := make(chan struct{})
	configs := image.ConfigAt.Digest.String()
	held := only(5 << 20)
	hold := func() {
		registry.Mend()
		registry.Break(registrytest.Fault{
			Match: func(r *http.Request) bool { return held(r) && !strings.HasSuffix(r.URL.Path, configs) },
			Handler: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				select {
				case <-let:
					next.ServeHTTP(w, r)
				case <-r.Context().Done():
				}
			},
		})
	}
	hold()
	n.must(t, "pull", "-q", name)
	check := func(ctr string, number int) {
		t.Helper()
		file, _, want := piece(number)
		if got := n.must(t, "exec", ctr, "sha256sum", "/"+file); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, not %s", file, got, want)
		}
	}
	n.must(t, "run", "-d", "--name", "early", "--init=false", name, "sleep", "1000")
	check("early", 3)
	if here := n.objects(); here > before-10 {
		t.Fatalf("%d of %d bodies are here already", here, before)
	}
	lazy, err := os.ReadFile(n.state + "/lazy.pid")
	if err != nil {
		t.Fatal(err)
	}

	n.killNode()
	n.start(t)
	check("early", 20)
	n.must(t, "run", "--rm", name, "cat", "/data/21")
	privileged := n.command(t, "run", "--rm", "--privileged", name, "cat", "/data/39")
	if err := privileged.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- privileged.Wait() }()

	// What the registry refuses is an error, not zeros.
	registry.Break(registrytest.Fault{Match: registrytest.Blobs(), Handler: registrytest.Status(http.StatusForbidden)})
	out, err := n.command(t, "exec", "early", "cat", "/data/30").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "I/O error") && !strings.Contains(string(out), "nput/output error") {
		t.Errorf("a file that is refused: %.200q, %v", out, err)
	}
	hold()
	check("early", 30)
	select {
	case err := <-ended:
		t.Errorf("a privileged container did not wait: %v", err)
	default:
	}

	close(let)
	n.eventually(t, "the image is whole", func() error {
		if here := n.objects(); here < before {
			return fmt.Errorf("%d of %d bodies", here, before)
		}
		return nil
	})
	for number := range pieces {
		check("early", number)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the privileged container that waited: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the privileged container waits still")
	}
	n.must(t, "rm", "-f", "early")
	n.eventually(t, "the process for missing files ends", func() error {
		var pid int
		if _, err := fmt.Sscan(string(lazy), &pid); err != nil {
			return err
		}
		if syscall.Kill(pid, 0) == nil {
			return errors.New("it runs")
		}
		return nil
	})
	if out := n.must(t, "system", "scrub"); !strings.Contains(out, "nothing is damaged") {
		t.Errorf("a scrub says: %s", out)
	}
}
