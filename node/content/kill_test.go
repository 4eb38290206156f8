package content_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/blob"
	"berth/node/content"
)

const killDir = "BERTH_TEST_KILL_DIR"

// TestKill kills a process in the middle of its writes, again and again. What
// it has called committed is there and whole, what it has begun can be gone on
// with, and nothing is left that no record names.
func TestKill(t *testing.T) {
	if dir := os.Getenv(killDir); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	w := &world{t: t, root: t.TempDir(), natives: &natives{}}
	kept := map[string]bool{} // "<namespace>/<digest>" that it has committed, and not begun to delete
	for range 15 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), fmt.Sprint(killDir, "=", w.root))
		out, err := child.StdoutPipe()
		w.must(err)
		w.must(child.Start())
		lines := bufio.NewScanner(out)
		killed, left := false, rand.IntN(12) // commits that it is let
		kill := sync.OnceFunc(func() {
			killed = true
			time.AfterFunc(time.Duration(rand.IntN(10))*time.Millisecond, func() { _ = child.Process.Kill() })
		})
		for lines.Scan() {
			verb, key, _ := strings.Cut(lines.Text(), " ")
			switch verb {
			case "ready":
			case "committed":
				kept[key] = true
				left--
			case "deleting":
				delete(kept, key)
			default:
				t.Log(lines.Text())
			}
			if left <= 0 {
				kill()
			}
		}
		_ = child.Wait()
		if !killed {
			t.Fatal("the child did not begin")
		}
		w.open()
		w.checkAll(kept)
		w.close()
		if t.Failed() {
			return
		}
	}
	if len(kept) < 15 {
		t.Errorf("only %d blobs were committed: too little to prove anything", len(kept))
	}
}

// checkAll reads everything.
func (w *world) checkAll(kept map[string]bool) {
	w.t.Helper()
	names, err := w.blobs.EachNamed()
	w.must(err)
	ingests := 0
	for n := range writers {
		namespace := fmt.Sprint("n", n)
		infos, err := w.List(w.t.Context(), namespace)
		w.must(err)
		has := map[string]bool{}
		for _, info := range infos {
			has[namespace+"/"+info.Digest.String()] = true
			body := w.read(namespace, info.Digest)
			if digest.FromString(body) != info.Digest || int64(len(body)) != info.Size {
				w.t.Errorf("%s is not whole: %d of %d bytes", info.Digest, len(body), info.Size)
			}
		}
		for key := range kept {
			if strings.HasPrefix(key, namespace+"/") && !has[key] {
				w.t.Errorf("%s was committed, and is gone", key)
			}
		}
		for _, st := range w.Statuses(w.t.Context(), namespace) {
			ingests++
			wr, err := w.Writer(w.t.Context(), namespace, content.WriteRequest{Ref: st.Ref})
			w.must(err)
			_, err = wr.Write(w.t.Context(), []byte("gone on with"))
			w.must(err)
			w.must(wr.Close())
			w.must(w.Abort(w.t.Context(), namespace, "", st.Ref))
		}
	}
	if len(names) > ingests {
		w.t.Errorf("%d files for %d ingests", len(names), ingests)
	}
}

const writers = 4

// writeUntilKilled writes, labels, deletes and collects in several namespaces,
// and tells what it has done.
func writeUntilKilled(t *testing.T, dir string) {
	w := &world{t: t, root: dir, natives: &natives{}}
	w.open()
	var mu sync.Mutex
	tell := func(verb, key string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(verb, key)
	}
	var all sync.WaitGroup
	for n := range writers {
		all.Go(func() {
			for round := 0; ; round++ {
				if err := w.round(fmt.Sprint("n", n), round, tell); err != nil && !errors.Is(err, errs.Exists) {
					tell("failed", err.Error())
				}
			}
		})
	}
	all.Go(func() {
		for {
			if err := w.leases.Collect(context.Background()); err != nil {
				tell("failed", err.Error())
			}
			_ = w.blobs.Walk(context.Background(), func(i blob.Info) error {
				_, _ = w.Drop(context.Background(), i.Digest)
				return nil
			})
		}
	})
	tell("ready", "")
	all.Wait()
}

func (w *world) round(namespace string, round int, tell func(string, string)) error {
	ctx, rng := context.Background(), rand.New(rand.NewPCG(uint64(round)/2, uint64(os.Getpid()))) // others, and the next round, write the same
	body := bytes.Repeat([]byte(fmt.Sprint(rng.Uint64())), 1+rng.IntN(5000))
	d := digest.FromBytes(body)
	id := fmt.Sprint(os.Getpid(), "-", round)
	_, err := w.leases.Create(ctx, namespace, id, map[string]string{"containerd.io/gc.expire": time.Now().Add(time.Hour).Format(time.RFC3339)})
	if err != nil {
		return err
	}
	wr, err := w.Writer(ctx, namespace, content.WriteRequest{Ref: "ref " + id, Lease: id, Expected: d, Total: int64(len(body))})
	if err != nil {
		return err
	}
	defer wr.Close()
	half := len(body) / 2
	if wr.Status().Offset == 0 { // else another namespace has it
		if _, err := wr.Write(ctx, body[:half]); err != nil || rng.IntN(4) == 0 {
			return err // left as it is
		}
		if _, err := wr.Write(ctx, body[half:]); err != nil {
			return err
		}
	}
	if _, err := wr.Commit(ctx, int64(len(body)), d, map[string]string{"containerd.io/gc.root": "now"}); err != nil {
		return err
	}
	key := namespace + "/" + d.String()
	tell("committed", key)
	if err := w.leases.Delete(ctx, namespace, id); err != nil {
		return err
	}
	if rng.IntN(3) == 0 {
		tell("deleting", key)
		return w.Delete(ctx, namespace, d)
	}
	_, err = w.Update(ctx, namespace, d, func(labels map[string]string) (map[string]string, error) {
		labels["k"] = "v"
		return labels, nil
	})
	return err
}

// A full disk is told as such, and what is there stays.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	w := &world{t: t, root: t.TempDir(), natives: &natives{}}
	small := filepath.Join(w.root, "blobs")
	w.must(os.Mkdir(small, 0o700))
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount a small tmpfs:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	w.open()
	t.Cleanup(w.close)
	kept := w.put("a", []byte("kept"))
	wr, err := w.Writer(t.Context(), "a", content.WriteRequest{Ref: "big"})
	w.must(err)
	_, err = wr.Write(t.Context(), []byte("begin"))
	w.must(err)
	_, err = wr.Write(t.Context(), make([]byte, 2<<20))
	w.kind(err, errs.Exhausted)
	if !strings.Contains(err.Error(), "no space left") {
		t.Error(err)
	}
	_, err = wr.Write(t.Context(), []byte(" end"))
	w.must(err)
	info, err := wr.Commit(t.Context(), 9, digest.FromString("begin end"), nil)
	w.must(err)
	w.must(wr.Close())
	if got := w.read("a", info.Digest); got != "begin end" {
		t.Errorf("%.20q", got)
	}
	if got := w.read("a", kept); got != "kept" {
		t.Error(got)
	}
	w.put("a", make([]byte, 512<<10))
}
