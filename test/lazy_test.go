package test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registrytest"
	"berth/test/machine"
)

// piece is a file of the lazy image, and what sha256sum says of it.
func piece(n int) (name string, body []byte, sum string) {
	body = registrytest.Noise(uint64(n), 600_000)
	hash := sha256.Sum256(body)
	return fmt.Sprintf("data/%02d", n), body, hex.EncodeToString(hash[:])
}

const pieces = 40

// lazyFiles are a shell, for one layer, and pieces for another.
func lazyFiles(t *testing.T) (program, data []registrytest.File) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox, linked statically")
	}
	program = []registrytest.File{{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(busybox)}}
	for _, name := range []string{"sh", "cat", "sha256sum", "sleep", "mount", "mkdir"} {
		program = append(program, registrytest.File{Header: tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}})
	}
	for n := range pieces {
		name, body, _ := piece(n)
		data = append(data, registrytest.File{Header: tar.Header{Name: name}, Body: string(body)})
	}
	return program, data
}

func lazyImage(t *testing.T) registrytest.Image {
	t.Helper()
	program, data := lazyFiles(t)
	return registrytest.Make(t, []registrytest.Layer{
		registrytest.Gzip(t, registrytest.Tar(t, program...)), registrytest.Gzip(t, registrytest.Tar(t, data...)),
	}, registrytest.Runs(ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}))
}

// objects counts the bodies that the node has.
func (n *node) objects() int {
	found, _ := filepath.Glob(n.Root + "/objects/??/*")
	return len(found)
}

// whole matches downloads of whole blobs: what is asked for because somebody
// waits for it is parts.
func whole(blobs ...digest.Digest) func(*http.Request) bool {
	match := registrytest.Blobs(blobs...)
	return func(r *http.Request) bool { return match(r) && r.Header.Get("Range") == "" }
}

// hold has the registry keep requests waiting until let is closed.
func hold(match func(*http.Request) bool, let <-chan struct{}) registrytest.Fault {
	return registrytest.Fault{Match: match, Handler: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-let:
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}}
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
	machine.Until(t, "tables of contents are kept", func() error {
		if found, _ := filepath.Glob(n.Root + "/indexes/noted/sha256-*"); len(found) != 2 {
			return fmt.Errorf("%d", len(found))
		}
		return nil
	})
	before := n.objects()
	n.must(t, "rmi", name)
	machine.Until(t, "the image's bodies are swept", func() error {
		if left := n.objects(); left > before-pieces {
			return fmt.Errorf("%d of %d left", left, before)
		}
		return nil
	})

	let := make(chan struct{})
	held := hold(whole(image.Layers[0].Digest, image.Layers[1].Digest), let)
	registry.Break(held)
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
	lazy, err := os.ReadFile(n.State + "/lazy.pid")
	if err != nil {
		t.Fatal(err)
	}

	n.Kill()
	n.Start(t)
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
	registry.Mend()
	registry.Break(held)
	check("early", 30)
	select {
	case err := <-ended:
		t.Errorf("a privileged container did not wait: %v", err)
	default:
	}

	close(let)
	machine.Until(t, "the image is whole", func() error {
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
	case <-time.After(time.Minute):
		t.Error("the privileged container waits still")
	}
	n.must(t, "rm", "-f", "early")
	machine.Until(t, "the process for missing files ends", func() error {
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

// chunked packs files as zstd:chunked does: each body begins a frame, and a
// table at the end says where. lie changes the table.
func chunked(t *testing.T, files []registrytest.File, lie func(rows []map[string]any)) registrytest.Layer {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var plain, part, packed bytes.Buffer
	w := tar.NewWriter(io.MultiWriter(&plain, &part))
	flush := func() {
		packed.Write(z.EncodeAll(part.Bytes(), nil))
		part.Reset()
	}
	var rows []map[string]any
	for _, f := range files {
		h := f.Header
		h.ModTime = time.Unix(1_700_000_000, 0)
		row := map[string]any{"name": h.Name, "mode": max(h.Mode, 0o644), "modtime": h.ModTime.UTC().Format(time.RFC3339)}
		rows = append(rows, row)
		h.Mode, h.Size = max(h.Mode, 0o644), int64(len(f.Body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		flush()
		if row["type"] = "reg"; h.Typeflag == tar.TypeSymlink {
			row["type"], row["linkName"] = "symlink", h.Linkname
			continue
		}
		sum := sha256.Sum256([]byte(f.Body))
		row["size"], row["offset"], row["digest"] = len(f.Body), packed.Len(), "sha256:"+hex.EncodeToString(sum[:])
		if _, err := io.WriteString(w, f.Body); err != nil {
			t.Fatal(err)
		}
		flush()
		row["endOffset"] = packed.Len()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flush()
	if lie != nil {
		lie(rows)
	}
	text, err := json.Marshal(map[string]any{"version": 1, "entries": rows})
	if err != nil {
		t.Fatal(err)
	}
	table, at := z.EncodeAll(text, nil), packed.Len()
	head := binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(len(table))) // a frame that is skipped
	packed.Write(append(head, table...))
	return registrytest.Layer{
		Descriptor: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerZstd, Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len()), Data: bytes.Clone(packed.Bytes()),
			Annotations: map[string]string{
				"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(table).String(),
				"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", at+len(head), len(table), len(text)),
			},
		},
		DiffID: digest.FromBytes(plain.Bytes()), Tar: plain.Bytes(),
	}
}

// A layer that brings its table of contents along can be used at its very
// first pull; what it turns out to be decides what later containers stand on.
func TestEarlyStart(t *testing.T) {
	registry := registrytest.New(t)
	program, data := lazyFiles(t)
	runs := registrytest.Runs(ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}})
	data = append(data, registrytest.Text("data/tiny", "tiny\n"))
	honest := registrytest.Make(t, []registrytest.Layer{chunked(t, program, nil), chunked(t, data, nil)}, runs)
	registry.Push(t, "early", "1", honest)
	liar := chunked(t, append(data[:5:5], registrytest.Text("data/password", "secret\n")), func(rows []map[string]any) {
		rows[len(rows)-1]["name"] = "data/open"
	})
	liar.DiffID = honest.Layers[1].DiffID // so that it would be taken for another
	registry.Push(t, "early", "lie", registrytest.Make(t, []registrytest.Layer{chunked(t, program, nil), liar}, runs))

	n := newNode(t)
	if err := os.WriteFile(n.Config, []byte("[registry]\nlazy = \"on\"\nblobs = \"drop\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Kill()
	n.Start(t)
	if driver := n.must(t, "info", "--format", "{{.Snapshotter}}"); !strings.HasPrefix(driver, "lcfs") {
		t.Skipf("bodies cannot be missing on driver %s", driver)
	}
	let := make(chan struct{})
	registry.Break(hold(whole(honest.Layers[0].Digest, honest.Layers[1].Digest), let))
	name := registry.Host() + "/early:1"
	n.must(t, "pull", "-q", name)
	n.must(t, "run", "-d", "--name", "first", "--init=false", name, "sleep", "1000")
	file, _, want := piece(7)
	if got := n.must(t, "exec", "first", "sha256sum", "/"+file); !strings.HasPrefix(got, want) {
		t.Errorf("%s is %s, not %s", file, got, want)
	}
	if here := n.objects(); here > 15 {
		t.Errorf("%d bodies are here already", here)
	}
	n.Kill()
	n.Start(t)
	if got := n.must(t, "exec", "first", "cat", "/data/tiny"); got != "tiny" {
		t.Errorf("a tiny file is %q", got)
	}
	close(let)
	machine.Until(t, "the image is verified", func() error {
		if found, _ := filepath.Glob(n.Root + "/indexes/noted/sha256-*"); len(found) != 2 {
			return fmt.Errorf("%d of 2 layers", len(found))
		}
		return nil
	})
	n.must(t, "run", "--rm", "--privileged", name, "sh", "-c", "cat /data/tiny /data/39 > /dev/null")
	n.must(t, "rm", "-f", "first")
	if out := n.must(t, "system", "scrub"); !strings.Contains(out, "nothing is damaged") {
		t.Errorf("a scrub says: %s", out)
	}

	// A table that lies is found out, and nobody else's layers are touched.
	lie := registry.Host() + "/early:lie"
	n.must(t, "rmi", name)
	n.must(t, "pull", "-q", lie)
	machine.Until(t, "the lie is found out", func() error {
		out, err := n.command(t, "run", "--rm", lie, "cat", "/data/open").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "unpacks to") {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	n.must(t, "pull", "-q", name)
	if out, err := n.command(t, "run", "--rm", name, "cat", "/data/open").CombinedOutput(); err == nil {
		t.Errorf("another image has the lie: %q", out)
	}
}
