package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"berth/client"
	"berth/spec"
)

// The image of the lazy row: 300 MB of packages with a program that reads a
// sixteenth of it before it is ready, as measured programs do: some packages
// whole, and a few files of the others.
const (
	lazyTag      = "lazy"
	lazyLayers   = 10
	lazyPackages = 12 // of a layer
	lazyFiles    = 25 // of a package
	lazyFile     = 100_000
	lazyWhole    = 7  // packages that are read whole
	lazyFew      = 14 // further files, each of another package

	// fullColumn is a pull of all, before the program starts.
	fullColumn = "full pull"
	linkRate   = "100mbit"
)

// lazyReads are the files that the program reads.
func lazyReads() (names []string) {
	random := rand.New(rand.NewPCG(3, 300))
	packages := random.Perm(lazyLayers * lazyPackages)
	for _, p := range packages[:lazyWhole] {
		for f := range lazyFiles {
			names = append(names, lazyName(p, f))
		}
	}
	for _, p := range packages[lazyWhole:][:lazyFew] {
		names = append(names, lazyName(p, random.IntN(lazyFiles)))
	}
	return names
}

func lazyName(pkg, file int) string { return fmt.Sprintf("opt/pkg%03d/file%02d", pkg, file) }

// fillLazy makes the image unless it is there.
func (s shelf) fillLazy() error {
	if _, err := os.Stat(s.manifest(lazyTag)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range []string{"blobs", "manifests"} {
		if err := os.MkdirAll(filepath.Join(string(s), dir), 0o755); err != nil {
			return err
		}
	}
	words := newProse(rand.New(rand.NewPCG(60, 600))).words
	layers := make([]blob, lazyLayers+1)
	err := each(len(layers), runtime.NumCPU(), func(n int) (err error) {
		if layers[n], err = lazyLayer(n, words); err != nil {
			return err
		}
		err = os.WriteFile(s.blob(layers[n].Digest), layers[n].data, 0o644)
		layers[n].data = nil
		return err
	})
	if err != nil {
		return err
	}
	var diffs []string
	for _, b := range layers {
		diffs = append(diffs, b.diff)
	}
	config, err := document("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2023-11-14T22:13:20Z",
		"config": map[string]any{"Cmd": []string{"/bin/sh", "/ready"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	manifest, err := document(manifestType, map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.blob(config.Digest), config.data, 0o644),
		os.WriteFile(s.blob(manifest.Digest), manifest.data, 0o644),
		os.WriteFile(s.manifest(lazyTag), manifest.data, 0o644))
}

// lazyLayer is packages, or as the last one the program.
func lazyLayer(n int, words [][]byte) (blob, error) {
	var compressed bytes.Buffer
	squeeze, err := gzip.NewWriterLevel(&compressed, 5)
	if err != nil {
		return blob{}, err
	}
	whole := sha256.New()
	w := tar.NewWriter(io.MultiWriter(squeeze, whole))
	add := func(name string, mode int64, body []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body)), ModTime: time.Unix(1_700_000_000, 0)}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	}
	if n == lazyLayers {
		err = lazyProgram(add)
	} else {
		for p := n * lazyPackages; p < (n+1)*lazyPackages; p++ {
			for f := range lazyFiles {
				text := prose{random: rand.New(rand.NewPCG(uint64(p), uint64(f))), words: words}
				text.zipf = rand.NewZipf(text.random, 1.15, 20, uint64(len(words)-1))
				err = errors.Join(err, add(lazyName(p, f), 0o644, text.take(lazyFile)))
			}
		}
	}
	if err := errors.Join(err, w.Close(), squeeze.Close()); err != nil {
		return blob{}, err
	}
	data := compressed.Bytes()
	return blob{
		Type: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest(data), Size: len(data),
		data: data, diff: fmt.Sprintf("sha256:%x", whole.Sum(nil)),
	}, nil
}

func lazyProgram(add func(name string, mode int64, body []byte) error) error {
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	var script strings.Builder
	for _, name := range lazyReads() {
		fmt.Fprintf(&script, "read -r line < /%s || exit 1\n/bin/busybox cat /%s > /dev/null || exit 1\n", name, name)
	}
	return errors.Join(add("bin/busybox", 0o755, shell), add("bin/sh", 0o755, shell), add("ready", 0o644, []byte(script.String())))
}

// measureLazy compares the time from the pull to a program that is ready, when
// all of its image comes first and when it comes as it is wanted: over a link
// that is shaped, from a registry in a network namespace of its own.
func (b *bench) measureLazy(ctx context.Context) (err error) {
	var ours *berth
	for _, s := range b.sides {
		if node, ok := s.side.(*berth); ok {
			ours = node
		}
	}
	if ours == nil || !b.wants("storage-lazy") {
		return nil
	}
	if err := shelf(b.shelf).fillLazy(); err != nil {
		return err
	}
	link, err := newLink(ctx, shelf(b.shelf))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, link.close(context.WithoutCancel(ctx))) }()
	ref := link.addr + "/bench/lazy:" + lazyTag
	for round := range b.pulls {
		b.log.InfoContext(ctx, "lazy start", "round", round+1, "of", b.pulls)
		if err := b.lazyRound(ctx, ours, ref); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) lazyRound(ctx context.Context, node *berth, ref string) error {
	// What an earlier round left is forgotten: this pull is the first.
	known, err := filepath.Glob(filepath.Join(node.root, "indexes", "noted", "*"))
	if err != nil {
		return err
	}
	for _, name := range known {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	empty := node.countObjects()
	took, err := node.ready(ctx, ref)
	if err != nil {
		return fmt.Errorf("full pull: %w", err)
	}
	b.results.add("storage-lazy", fullColumn, took.Seconds())
	whole := node.countObjects()
	if err := node.poll(ctx, "what is known of the layers", func(context.Context) error {
		if known, _ := filepath.Glob(filepath.Join(node.root, "indexes", "noted", "sha256-*")); len(known) < lazyLayers+1 {
			return fmt.Errorf("%d of %d", len(known), lazyLayers+1)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := pause(ctx, 3*time.Second); err != nil { // the profile is kept soon after the container's end
		return err
	}
	if err := node.forget(ctx, ref, empty); err != nil {
		return err
	}
	if took, err = node.ready(ctx, ref); err != nil {
		return fmt.Errorf("lazy start: %w", err)
	}
	if here := node.countObjects(); here >= whole {
		return errors.New("the start was not lazy: all was here when the program was ready")
	}
	b.results.add("storage-lazy", ourColumn, took.Seconds())
	began := time.Now()
	if err := node.poll(ctx, "the rest of the image", func(context.Context) error {
		if here := node.countObjects(); here < whole {
			return fmt.Errorf("%d of %d bodies", here, whole)
		}
		return nil
	}); err != nil {
		return err
	}
	b.results.add("storage-lazy-whole", ourColumn, (took + time.Since(began)).Seconds())
	return node.forget(ctx, ref, empty)
}

func (b *berth) countObjects() int {
	found, _ := filepath.Glob(filepath.Join(b.root, "objects", "??", "*"))
	return len(found)
}

// forget removes the image and waits for the sweep.
func (b *berth) forget(ctx context.Context, ref string, empty int) error {
	if _, err := b.ImageRemove(ctx, ref, true); err != nil {
		return err
	}
	return b.poll(ctx, "the sweep of "+ref, func(context.Context) error {
		if left := b.countObjects(); left > empty {
			return fmt.Errorf("%d bodies left", left-empty)
		}
		return nil
	})
}

// ready pulls an image and runs its program until it has done all it does to
// become ready.
func (b *berth) ready(ctx context.Context, ref string) (time.Duration, error) {
	began := time.Now()
	if _, err := b.ImagePull(ctx, spec.PullRequest{Reference: ref, Insecure: true}, nil); err != nil {
		return 0, err
	}
	c, err := b.ContainerCreate(ctx, spec.ContainerConfig{Image: ref, Runtime: b.runtime, Network: spec.NetworkChoice{Mode: "none"}})
	if err != nil {
		return 0, err
	}
	if err := b.ContainerStart(ctx, c.ID); err != nil {
		return 0, err
	}
	exit, err := b.ContainerWait(ctx, c.ID, client.NotRunning)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	if exit.Code != 0 {
		return 0, fmt.Errorf("the program ended with %d", exit.Code)
	}
	return took, b.ContainerRemove(ctx, c.ID, true, false)
}

// link is a registry at the other end of a slow link.
type link struct {
	*shelfServer
	namespace string
}

const (
	linkHere  = "10.199.77.1"
	linkThere = "10.199.77.2"
)

// newLink makes a network namespace with a shaped veth pair, and the registry
// in it.
func newLink(ctx context.Context, s shelf) (_ *link, err error) {
	l := &link{namespace: fmt.Sprintf("berth-bench-%d", os.Getpid())}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(context.WithoutCancel(ctx)))
		}
	}()
	ours, theirs := fmt.Sprintf("bl%d", os.Getpid()), fmt.Sprintf("br%d", os.Getpid())
	for _, line := range []string{
		"ip netns add " + l.namespace,
		"ip link add " + ours + " type veth peer name " + theirs + " netns " + l.namespace,
		"ip addr add " + linkHere + "/30 dev " + ours,
		"ip link set " + ours + " up",
		"ip -n " + l.namespace + " addr add " + linkThere + "/30 dev " + theirs,
		"ip -n " + l.namespace + " link set " + theirs + " up",
		"ip netns exec " + l.namespace + " tc qdisc add dev " + theirs + " root tbf rate " + linkRate + " burst 128kb latency 50ms",
	} {
		if _, err := output(ctx, nil, strings.Fields(line)...); err != nil {
			return l, fmt.Errorf("%s: %w", line, err)
		}
	}
	listener, err := listenIn(ctx, "/run/netns/"+l.namespace, linkThere+":0")
	if err != nil {
		return l, err
	}
	l.shelfServer = &shelfServer{http: &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}, addr: listener.Addr().String()}
	l.serving.Go(func() { _ = l.http.Serve(listener) }) // ends with close
	return l, nil
}

// listenIn listens in another network namespace: a socket stays where it was
// made.
func listenIn(ctx context.Context, namespace, addr string) (listener net.Listener, err error) {
	fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var there sync.WaitGroup
	there.Go(func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err = os.NewSyscallError("setns", unix.Setns(fd, unix.CLONE_NEWNET)); err != nil {
			return
		}
		var config net.ListenConfig
		listener, err = config.Listen(ctx, "tcp", addr)
	})
	there.Wait()
	return listener, err
}

func (l *link) close(ctx context.Context) error {
	var err error
	if l.shelfServer != nil {
		err = l.shelfServer.close()
	}
	_, removeErr := output(ctx, nil, "ip", "netns", "del", l.namespace) // the pair goes with it
	return errors.Join(err, removeErr)
}
