package lazy_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/toc"
	"berth/image/tree"
	"berth/node/lazy"
)

// TestMain is the process for missing files, too: so that it can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("LAZY_TEST_SERVE"); dir != "" {
		deadline, err := time.ParseDuration(os.Getenv("LAZY_TEST_DEADLINE"))
		if err == nil {
			err = lazy.Serve(context.Background(), lazy.ServeConfig{
				Socket: dir + "/lazy.sock", PidFile: dir + "/lazy.pid", Objects: dir + "/objects", Deadline: deadline,
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// shelf is a folder of objects.
type shelf struct{ dir string }

func (s shelf) path(d tree.Digest) string {
	return filepath.Join(s.dir, hex.EncodeToString(d[:1]), hex.EncodeToString(d[1:]))
}

func (s shelf) Has(d tree.Digest) bool {
	_, err := os.Lstat(s.path(d))
	return err == nil
}

func (s shelf) Fill(_ context.Context, d tree.Digest, size int64, body io.Reader) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if int64(len(b)) != size || sha256.Sum256(b) != d {
		return errs.New(errs.Invalid, "other bytes")
	}
	if err := os.MkdirAll(filepath.Dir(s.path(d)), 0o700); err != nil {
		return err
	}
	temporary := fmt.Sprintf("%s.%d", s.path(d), rand.Uint64())
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, s.path(d))
}

// blobOf is bodies in a layer's blob, at a registry that can misbehave.
type blobOf struct {
	table  *toc.Table
	packed []byte
	bodies []toc.Body

	mu    sync.Mutex
	fault func(from, to int64) (io.ReadCloser, error) // instead of the bytes
	asked int
}

func (b *blobOf) part(_ context.Context, from, to int64) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	if b.fault != nil {
		return b.fault(from, to)
	}
	return io.NopCloser(bytes.NewReader(b.packed[from:to])), nil
}

func (b *blobOf) fail(fault func(from, to int64) (io.ReadCloser, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = fault
}

func newBlob(t *testing.T, bodies ...[]byte) *blobOf {
	t.Helper()
	b := &blobOf{}
	var content []byte
	for i, body := range bodies {
		content = append(content, fmt.Sprintf("header %d of a file", i)...)
		b.bodies = append(b.bodies, toc.Body{Object: sha256.Sum256(body), Offset: int64(len(content)), Size: int64(len(body))})
		content = append(content, body...)
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(content)
	w.Close()
	b.packed = packed.Bytes()
	r, err := toc.Record(bytes.NewReader(b.packed), 1<<30, digest.FromBytes(b.packed), int64(len(b.packed)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	b.table = r.Table(digest.FromBytes(content))
	if err := b.table.SetBodies(slices.Values(b.bodies)); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *blobOf) layer(key string, s shelf, whole func(context.Context) error) lazy.Layer {
	l := lazy.Layer{Key: key, Table: b.table, Part: b.part, Whole: whole}
	for _, body := range b.bodies {
		if !s.Has(body.Object) {
			l.Missing = append(l.Missing, lazy.Missing{Object: body.Object, Size: body.Size})
		}
	}
	return l
}

// machine is a node's folders.
type machine struct {
	dir   string
	shelf shelf
}

func newMachine(t *testing.T, deadline time.Duration) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount FUSE")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse")
	}
	dir, err := os.MkdirTemp("", "lazy") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if said, err := os.ReadFile(dir + "/lazy.log"); err == nil && t.Failed() {
			t.Logf("the process said:\n%s", said)
		}
		os.RemoveAll(dir)
	})
	if err := os.Mkdir(dir+"/objects", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LAZY_TEST_SERVE", dir)
	t.Setenv("LAZY_TEST_DEADLINE", deadline.String())
	return &machine{dir, shelf{dir + "/objects"}}
}

func (m *machine) open(t *testing.T, deadline time.Duration) *lazy.Set {
	t.Helper()
	s, err := lazy.Open(t.Context(), lazy.Config{
		Socket: m.dir + "/lazy.sock", PidFile: m.dir + "/lazy.pid", Command: []string{os.Args[0]}, Bodies: m.shelf, Deadline: deadline,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pid := s.Pid()
		s.Close()
		if pid > 0 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return s
}

// at attaches the tree of what is missing.
func (m *machine) at(t *testing.T, s *lazy.Set) string {
	t.Helper()
	fd, err := s.Dir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	target := t.TempDir()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

func inTree(target string, d tree.Digest) string { return shelf{target}.path(d) }

// closed is a registry from which nothing comes.
func closed(int64, int64) (io.ReadCloser, error) {
	return nil, errs.New(errs.Unavailable, "the registry is closed")
}

func noise(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func never(context.Context) error { return nil }

func TestOpenWaits(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	bodies := [][]byte{noise(1, 5000), noise(2, 3<<20), []byte("small")}
	b := newBlob(t, bodies...)
	b.fail(closed)
	s.Add(lazy.Image{Name: "i", Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	target := m.at(t, s)
	opened := make(chan error, 3)
	for i, body := range bodies {
		go func() {
			got, err := os.ReadFile(inTree(target, b.bodies[i].Object))
			if err == nil && !bytes.Equal(got, body) {
				err = errors.New("other bytes")
			}
			opened <- err
		}()
	}
	if st, err := os.Stat(inTree(target, b.bodies[1].Object)); err != nil || st.Size() != 3<<20 {
		t.Errorf("before it is here: %v, %v", st, err)
	}
	for _, name := range []string{"zz", "00/11", "aB", hex.EncodeToString(make([]byte, 1)) + "/" + strings.Repeat("0", 62)} {
		if _, err := os.Stat(filepath.Join(target, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	select {
	case err := <-opened:
		t.Fatalf("opened before it was here: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.fail(nil)
	for range bodies {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
	if _, err := os.OpenFile(inTree(target, b.bodies[0].Object), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		t.Errorf("for writing: %v", err)
	}
}

// mmap shows the right bytes, and they are the object's own pages.
func TestMap(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	body := noise(3, 300_000)
	b := newBlob(t, body)
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, func(context.Context) error { return errors.New("stay") })}})
	f, err := os.Open(inTree(m.at(t, s), b.bodies[0].Object))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(body), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	if !bytes.Equal(mapped, body) {
		t.Error("other bytes")
	}
}

// Mounted behind the folder of objects, a program that is missing can be run.
func TestOverlay(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox")
	}
	b := newBlob(t, program, []byte("text of a file\n"))
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	target := m.overlay(t, s, map[string]toc.Body{"busybox": b.bodies[0], "text": b.bodies[1]})
	// A shell runs it: while Go waits for an exec, it may stop; and this very
	// process is to bring the program.
	out, err := exec.CommandContext(t.Context(), "sh", "-c", target+"/busybox cat "+target+"/text").CombinedOutput()
	if err != nil || string(out) != "text of a file\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// overlay mounts files whose bodies are objects, or missing.
func (m *machine) overlay(t *testing.T, s *lazy.Set, files map[string]toc.Body) string {
	t.Helper()
	meta, target := filepath.Join(m.dir, "meta"), t.TempDir()
	if err := os.MkdirAll(meta, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range files {
		path := filepath.Join(meta, name)
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, body.Size); err != nil {
			t.Fatal(err)
		}
		redirect := "/" + hex.EncodeToString(body.Object[:1]) + "/" + hex.EncodeToString(body.Object[1:])
		for xattr, value := range map[string]string{"trusted.overlay.metacopy": "", "trusted.overlay.redirect": redirect} {
			if err := unix.Setxattr(path, xattr, []byte(value), 0); err != nil {
				t.Skipf("needs trusted xattrs: %v", err)
			}
		}
	}
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fsfd)
	fd, err := s.Dir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = errors.Join(unix.FsconfigSetString(fsfd, "lowerdir+", meta), unix.FsconfigSetString(fsfd, "datadir+", m.shelf.dir), unix.FsconfigSetFd(fsfd, "datadir+", fd),
		unix.FsconfigSetString(fsfd, "metacopy", "off"), unix.FsconfigSetString(fsfd, "redirect_dir", "off"), unix.FsconfigCreate(fsfd))
	if err != nil {
		t.Skipf("needs an overlay with data layers by descriptor: %v", err)
	}
	mount, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

func TestDeadRegistry(t *testing.T) {
	m := newMachine(t, 1500*time.Millisecond)
	s := m.open(t, time.Second)
	b := newBlob(t, noise(4, 5000))
	b.fail(closed)
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	target := m.at(t, s)
	start := time.Now()
	if _, err := os.ReadFile(inTree(target, b.bodies[0].Object)); !errors.Is(err, unix.EIO) {
		t.Errorf("after the deadline: %v", err)
	}
	if took := time.Since(start); took < 700*time.Millisecond || took > time.Minute {
		t.Errorf("it took %v", took)
	}
}

// What the registry will never give is not waited for.
func TestRefusedByTheRegistry(t *testing.T) {
	m := newMachine(t, 5*time.Minute)
	s := m.open(t, 5*time.Minute)
	b := newBlob(t, noise(4, 5000))
	b.fail(func(int64, int64) (io.ReadCloser, error) { return nil, errs.New(errs.Denied, "no") })
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	start := time.Now()
	if _, err := os.ReadFile(inTree(m.at(t, s), b.bodies[0].Object)); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if took := time.Since(start); took > 2*time.Minute {
		t.Errorf("it took %v", took)
	}
}

// Bytes that are not those of the digest are never seen, not even for a while.
func TestWrongBytes(t *testing.T) {
	m := newMachine(t, 2*time.Second)
	s := m.open(t, time.Second)
	b := newBlob(t, noise(6, 50_000), noise(7, 5000))
	b.fail(func(from, to int64) (io.ReadCloser, error) {
		damaged := bytes.Clone(b.packed[from:to])
		damaged[1000] ^= 1 // noise is stored, so this is in the first body
		return io.NopCloser(bytes.NewReader(damaged)), nil
	})
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	target := m.at(t, s)
	if _, err := os.ReadFile(inTree(target, b.bodies[1].Object)); err != nil {
		t.Errorf("the one that is right: %v", err)
	}
	if got, err := os.ReadFile(inTree(target, b.bodies[0].Object)); !errors.Is(err, unix.EIO) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if m.shelf.Has(b.bodies[0].Object) {
		t.Error("it has a name")
	}
	b.fail(nil)
	if got, err := os.ReadFile(inTree(target, b.bodies[0].Object)); err != nil || !bytes.Equal(got, noise(6, 50_000)) {
		t.Errorf("when the registry is right again: %v", err)
	}
}

// A process that is killed leaves errors behind, not zeros, and the next mount
// works with another.
func TestProcessKilled(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	b, late := newBlob(t, noise(8, 50_000), noise(9, 5000)), newBlob(t, noise(10, 5000))
	b.fail(closed)
	late.fail(closed)
	stay := func(context.Context) error { return errors.New("stay") }
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, stay), late.layer("k", m.shelf, stay)}})
	target := m.at(t, s)
	b.fail(nil)
	f, err := os.Open(inTree(target, b.bodies[0].Object))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	waiting := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(inTree(target, late.bodies[0].Object))
		waiting <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if err := syscall.Kill(s.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waiting:
		if err == nil {
			t.Error("who waited got something")
		}
	case <-time.After(time.Minute):
		t.Fatal("who waited waits for ever")
	}
	if got, err := os.ReadFile(inTree(target, b.bodies[1].Object)); err == nil {
		t.Errorf("%d bytes through a dead process", len(got))
	}
	got := make([]byte, 50_000) // what was open may be read on: it is the object itself
	if _, err := f.ReadAt(got, 0); err == nil && !bytes.Equal(got, noise(8, 50_000)) {
		t.Error("other bytes of an open file through a dead process")
	}
	for s.Pid() != 0 {
		time.Sleep(time.Millisecond)
	}
	late.fail(nil)
	if got, err := os.ReadFile(inTree(m.at(t, s), late.bodies[0].Object)); err != nil || !bytes.Equal(got, noise(10, 5000)) {
		t.Errorf("through the next: %v", err)
	}
}

// An open outlives the node it waits for.
func TestNodeRestarts(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	body := noise(11, 50_000)
	b := newBlob(t, body)
	b.fail(closed)
	add := func(s *lazy.Set) {
		s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	}
	add(s)
	target := m.at(t, s)
	opened := make(chan error, 1)
	go func() {
		got, err := os.ReadFile(inTree(target, b.bodies[0].Object))
		if err == nil && !bytes.Equal(got, body) {
			err = errors.New("other bytes")
		}
		opened <- err
	}()
	time.Sleep(100 * time.Millisecond)
	pid := s.Pid()
	s.Close()
	select {
	case err := <-opened:
		t.Fatalf("without a node: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	b.fail(nil)
	next := m.open(t, 10*time.Second)
	add(next)
	next.Ready(t.Context())
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if got := next.Pid(); got != 0 && got != pid {
		t.Errorf("process %d became %d", pid, got)
	}
}

// When all is here the layer is whole, and the process ends with the last
// mount.
func TestWhole(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	var bodies [][]byte
	for i := range 200 {
		bodies = append(bodies, noise(byte(i), 1000+i*700))
	}
	b := newBlob(t, bodies...)
	b.fail(closed)
	whole := 0
	s.Add(lazy.Image{Name: "i", First: []tree.Digest{b.bodies[150].Object}, Layers: []lazy.Layer{b.layer("l", m.shelf, func(context.Context) error {
		if whole++; whole == 1 {
			return errors.New("not yet")
		}
		return nil
	})}})
	target := m.at(t, s)
	pid := s.Pid()
	if !s.Missing("l") || s.Missing("other") {
		t.Error("what is missing")
	}
	b.fail(nil)
	if err := s.Wait(t.Context(), "l", "other"); err != nil {
		t.Fatal(err)
	}
	if s.Missing("l") || whole != 2 || s.Pid() != 0 {
		t.Errorf("%v, called %d times, process %d", s.Missing("l"), whole, s.Pid())
	}
	for i, body := range bodies {
		if got, err := os.ReadFile(inTree(target, b.bodies[i].Object)); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("body %d: %v", i, err)
		}
	}
	if b.asked > 40 {
		t.Errorf("%d requests", b.asked)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the process went before its mount: %v", err)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process stays without a mount")
		}
	}
}

// A container that is killed does not wait for its file.
func TestReaderKilled(t *testing.T) {
	m := newMachine(t, time.Minute)
	s := m.open(t, time.Minute)
	b := newBlob(t, noise(12, 5000))
	b.fail(closed)
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	cmd := exec.CommandContext(t.Context(), "cat", inTree(m.at(t, s), b.bodies[0].Object))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	start := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v to die", took)
	}
	s.Forget("l")
	if s.Missing("l") {
		t.Error("forgotten, and missing still")
	}
}

// Files that lie together come with one request, however many wait for them.
func TestTogether(t *testing.T) {
	m := newMachine(t, 20*time.Second)
	s := m.open(t, 10*time.Second)
	var bodies [][]byte
	for i := range 50 {
		bodies = append(bodies, noise(byte(i), 3000))
	}
	b := newBlob(t, bodies...)
	b.fail(closed)
	s.Add(lazy.Image{Layers: []lazy.Layer{b.layer("l", m.shelf, never)}})
	target := m.at(t, s)
	time.Sleep(100 * time.Millisecond) // the background has failed, and rests
	b.mu.Lock()
	b.asked = 0
	b.mu.Unlock()
	b.fail(func(from, to int64) (io.ReadCloser, error) {
		time.Sleep(100 * time.Millisecond)
		return io.NopCloser(bytes.NewReader(b.packed[from:to])), nil
	})
	var opened sync.WaitGroup
	for i, body := range slices.Backward(bodies) {
		opened.Go(func() {
			if got, err := os.ReadFile(inTree(target, b.bodies[i].Object)); err != nil || !bytes.Equal(got, body) {
				t.Errorf("body %d: %v", i, err)
			}
		})
	}
	opened.Wait()
	if b.asked > 20 {
		t.Errorf("%d requests for %d files", b.asked, len(bodies))
	}
}
