package content_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/blob"
	"berth/node/content"
	"berth/node/lease"
)

// world is a Set and what it stands on.
type world struct {
	t       *testing.T
	root    string
	db      *kv.DB
	blobs   *blob.Store
	leases  *lease.Set
	natives *natives
	*content.Set
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir(), natives: &natives{}}
	w.open()
	t.Cleanup(func() { w.close() })
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	w.must(func() error { w.db, err = kv.Open(filepath.Join(w.root, "db")); return err }())
	w.must(func() error {
		w.blobs, err = blob.Open(context.Background(), filepath.Join(w.root, "blobs"), nil)
		return err
	}())
	w.must(func() error { w.leases, err = lease.Open(lease.Config{DB: w.db}); return err }())
	w.must(func() error {
		w.Set, err = content.Open(content.Config{DB: w.db, Blobs: w.blobs, Leases: w.leases, Namespaces: []string{"default"}, Natives: w.natives})
		return err
	}())
	w.leases.Own(w.Set)
}

func (w *world) close() { _, _ = w.blobs.Close(), w.db.Close() }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) kind(err error, want errs.Kind) {
	w.t.Helper()
	if errs.KindOf(err) != want {
		w.t.Errorf("error %v is %q, want %q", err, errs.KindOf(err), want)
	}
}

func (w *world) put(namespace string, body []byte, labels ...string) digest.Digest {
	w.t.Helper()
	d := digest.FromBytes(body)
	wr, err := w.Writer(w.t.Context(), namespace, content.WriteRequest{Ref: "put " + d.String()})
	w.must(err)
	defer wr.Close()
	_, err = wr.Write(w.t.Context(), body)
	w.must(err)
	all := map[string]string{}
	for n := 0; n < len(labels); n += 2 {
		all[labels[n]] = labels[n+1]
	}
	_, err = wr.Commit(w.t.Context(), 0, d, all)
	w.must(err)
	return d
}

func (w *world) read(namespace string, d digest.Digest) string {
	w.t.Helper()
	f, err := w.Open(w.t.Context(), namespace, d)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	w.must(err)
	return string(b)
}

// natives are the blobs of the node's own images.
type natives struct {
	mu    sync.Mutex
	all   map[digest.Digest]content.Info
	bring func(digest.Digest) (*os.File, error)
	came  []digest.Digest
}

func (n *natives) EachPart(_ context.Context, _ string, fn func(content.Info)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, i := range n.all {
		fn(i)
	}
	return nil
}

func (n *natives) Part(_ context.Context, _ string, d digest.Digest) (content.Info, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, ok := n.all[d]
	if !ok {
		return i, errs.New(errs.NotFound, "no part")
	}
	return i, nil
}

func (n *natives) Bring(_ context.Context, d digest.Digest) (*os.File, error) { return n.bring(d) }

func (n *natives) Arrived(_ context.Context, d digest.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.came = append(n.came, d)
}

func TestCommitted(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	d := w.put("a", []byte("one"), "k", "v", "empty", "")
	info, err := w.Info(ctx, "a", d)
	if err != nil || info.Size != 3 || len(info.Labels) != 1 || info.Labels["k"] != "v" || time.Since(info.Created) > time.Minute || !info.Created.Equal(info.Updated) {
		t.Error(info, err)
	}
	_, err = w.Info(ctx, "b", d)
	w.kind(err, errs.NotFound)
	if got := w.read("a", d); got != "one" {
		t.Error(got)
	}
	_, err = w.Open(ctx, "b", d)
	w.kind(err, errs.NotFound)

	updated, err := w.Update(ctx, "a", d, func(labels map[string]string) (map[string]string, error) {
		labels["k"], labels["l"] = "", "m"
		return labels, nil
	})
	if err != nil || len(updated.Labels) != 1 || updated.Labels["l"] != "m" || !updated.Updated.After(info.Updated) {
		t.Error(updated, err)
	}
	_, err = w.Update(ctx, "a", d, func(map[string]string) (map[string]string, error) {
		return map[string]string{"k": strings.Repeat("x", 4096)}, nil
	})
	w.kind(err, errs.Invalid)
	w.close()
	w.open()
	if again, err := w.Info(ctx, "a", d); err != nil || again.Labels["l"] != "m" || !again.Created.Equal(info.Created) {
		t.Error("after opening again:", again, err)
	}
	if all, err := w.List(ctx, "a"); err != nil || len(all) != 1 {
		t.Error(all, err)
	}
	w.must(w.Delete(ctx, "a", d))
	w.kind(w.Delete(ctx, "a", d), errs.NotFound)
	_, err = w.Info(ctx, "a", d)
	w.kind(err, errs.NotFound)
	if !w.blobs.Has(d) {
		t.Error("the blob is collected by others")
	}
	if dropped, err := w.Drop(ctx, d); !dropped || err != nil || w.blobs.Has(d) {
		t.Error("not dropped:", err)
	}
}

// What a namespace has costs another nothing, and stays as long as either
// wants it.
func TestSharing(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	d := w.put("a", []byte("shared"))
	wr, err := w.Writer(ctx, "b", content.WriteRequest{Ref: "r", Expected: d, Total: 6})
	w.must(err)
	if st := wr.Status(); st.Offset != 6 || st.Total != 6 || wr.Digest() != d {
		t.Error(st)
	}
	w.must(w.Delete(ctx, "a", d))
	if dropped, err := w.Drop(ctx, d); dropped || err != nil {
		t.Error("dropped from under a writer that shares it:", err)
	}
	w.must(wr.Close())
	w.close()
	w.open()
	if dropped, err := w.Drop(ctx, d); dropped || err != nil {
		t.Error("dropped from under an ingest that shares it:", err)
	}
	wr, err = w.Writer(ctx, "b", content.WriteRequest{Ref: "r", Expected: d})
	w.must(err)
	_, err = wr.Commit(ctx, 6, d, nil)
	w.must(err)
	w.must(wr.Close())
	if got := w.read("b", d); got != "shared" {
		t.Error(got)
	}
	_, err = w.Writer(ctx, "b", content.WriteRequest{Ref: "other", Expected: d})
	w.kind(err, errs.Exists)

	// Another size is another content, and so is what is written behind it.
	wr, err = w.Writer(ctx, "c", content.WriteRequest{Ref: "r", Expected: d, Total: 7})
	w.must(err)
	if st := wr.Status(); st.Offset != 0 {
		t.Error(st)
	}
	w.must(wr.Close())
	wr, err = w.Writer(ctx, "d", content.WriteRequest{Ref: "r", Expected: d})
	w.must(err)
	_, err = wr.Write(ctx, []byte(" more"))
	w.must(err)
	info, err := wr.Commit(ctx, 0, "", nil)
	w.must(err)
	w.must(wr.Close())
	if info.Digest != digest.FromString("shared more") || w.read("d", info.Digest) != "shared more" || w.read("b", d) != "shared" {
		t.Error(info)
	}
	if dropped, err := w.Drop(ctx, info.Digest); dropped || err != nil {
		t.Error("dropped, but held:", err)
	}
}

func TestIngest(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	body := bytes.Repeat([]byte("0123456789"), 1000)
	d := digest.FromBytes(body)
	ref := strings.Repeat("../../etc/\x00:", 400) // 4 KiB of a hostile name
	wr, err := w.Writer(ctx, "a", content.WriteRequest{Ref: ref, Total: int64(len(body)), Expected: d})
	w.must(err)
	_, err = wr.Write(ctx, body[:4000])
	w.must(err)
	_, err = w.Writer(ctx, "a", content.WriteRequest{Ref: ref})
	w.kind(err, errs.Unavailable)
	if !strings.Contains(err.Error(), "locked for") {
		t.Error(err)
	}
	other, err := w.Writer(ctx, "b", content.WriteRequest{Ref: ref}) // another namespace's
	w.must(err)
	w.must(other.Close())

	// The node ends in the middle. Nothing is closed, and the record of the
	// ingest has had its moment.
	w.must(w.db.Update(ctx, func(*kv.Tx) error { return nil }))
	w.close()
	w.open()
	st, err := w.Status(ctx, "a", ref)
	if err != nil || st.Offset != 4000 || st.Total != int64(len(body)) || st.Ref != ref {
		t.Fatal(st, err)
	}
	if all := w.Statuses(ctx, "a"); len(all) != 1 {
		t.Error(all)
	}
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: ref, Total: int64(len(body)), Expected: d})
	w.must(err)
	if wr.Digest() != digest.FromBytes(body[:4000]) {
		t.Error("what was there is not hashed")
	}
	_, err = wr.Commit(ctx, 0, d, nil)
	w.kind(err, errs.Conflict)
	_, err = wr.Commit(ctx, int64(len(body)), "", nil)
	w.kind(err, errs.Conflict)
	_, err = wr.Commit(ctx, 0, "garbage", nil)
	w.kind(err, errs.Conflict)
	_, err = wr.Write(ctx, body[4000:])
	w.must(err)
	_, err = wr.Commit(ctx, int64(len(body)), d, map[string]string{"k": strings.Repeat("v", 4096)})
	w.kind(err, errs.Invalid)
	_, err = wr.Commit(ctx, int64(len(body)), d, nil)
	w.must(err)
	_, err = wr.Write(ctx, body)
	w.kind(err, errs.Conflict)
	w.must(wr.Close())
	_, err = w.Status(ctx, "a", ref)
	w.kind(err, errs.NotFound)

	// The same once more: it is there, and nothing is left.
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: ref})
	w.must(err)
	_, err = wr.Write(ctx, body)
	w.must(err)
	_, err = wr.Commit(ctx, 0, "", nil)
	w.kind(err, errs.Exists)
	w.must(wr.Close())
	if all := w.Statuses(ctx, "a"); len(all) != 0 {
		t.Error(all)
	}

	// Another total begins anew; so does Truncate; Abort forgets.
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "x", Total: 5})
	w.must(err)
	_, err = wr.Write(ctx, []byte("abc"))
	w.must(err)
	w.must(wr.Close())
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "x", Total: 6})
	w.must(err)
	if st := wr.Status(); st.Offset != 0 || st.Total != 6 {
		t.Error(st)
	}
	_, err = wr.Write(ctx, []byte("abc"))
	w.must(err)
	w.must(wr.Truncate(ctx))
	if st := wr.Status(); st.Offset != 0 || wr.Digest() != digest.FromString("") {
		t.Error(st)
	}
	w.must(w.Abort(ctx, "a", "", "x"))
	w.kind(w.Abort(ctx, "a", "", "x"), errs.NotFound)
	_, err = wr.Write(ctx, []byte("late"))
	w.must(err)
	_, err = wr.Commit(ctx, 0, "", nil)
	w.kind(err, errs.NotFound)
	w.must(wr.Close())
	w.must(w.Abort(ctx, "b", "", ref))
	if names, err := w.blobs.EachNamed(); err != nil || len(names) != 0 {
		t.Error("left over:", names, err)
	}

	for _, ref := range []string{"", strings.Repeat("x", 1<<20)} {
		_, err = w.Writer(ctx, "a", content.WriteRequest{Ref: ref})
		w.kind(err, errs.Invalid)
	}
}

// A digest of another algorithm is taken from the beginning, or only at the
// end.
func TestSHA512(t *testing.T) {
	w := newWorld(t)
	sum := sha512.Sum512([]byte("body"))
	d := digest.NewDigestFromBytes(digest.SHA512, sum[:])
	for n, expected := range []digest.Digest{d, ""} {
		wr, err := w.Writer(t.Context(), fmt.Sprint(n), content.WriteRequest{Ref: "r", Total: 5 * int64(n), Expected: expected})
		w.must(err)
		_, err = wr.Write(t.Context(), []byte("body"))
		w.must(err)
		info, err := wr.Commit(t.Context(), 4, d, nil)
		w.must(err)
		if info.Digest != d || w.read(fmt.Sprint(n), d) != "body" {
			t.Error(info)
		}
		w.must(wr.Close())
	}
}

// Many who want to bring the same: all but one are told that it is here.
func TestSameAtOnce(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for n := range 16 {
		all.Go(func() {
			wr, err := w.Writer(context.Background(), "a", content.WriteRequest{Ref: fmt.Sprint(n)})
			if err != nil {
				t.Error(err)
				return
			}
			defer wr.Close()
			_, _ = wr.Write(context.Background(), []byte("the same"))
			_, err = wr.Commit(context.Background(), 0, "", nil)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errors.Is(err, errs.Exists) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if made != 1 || len(w.Statuses(t.Context(), "a")) != 0 {
		t.Error(made, "made it;", w.Statuses(t.Context(), "a"))
	}
	if names, err := w.blobs.EachNamed(); err != nil || len(names) != 0 {
		t.Error("left over:", names, err)
	}
}

func TestLeased(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	expire := map[string]string{"containerd.io/gc.expire": time.Now().Add(time.Hour).Format(time.RFC3339)}
	_, err := w.leases.Create(ctx, "a", "l", expire)
	w.must(err)
	_, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "r", Lease: "none"})
	w.kind(err, errs.NotFound)
	if all := w.Statuses(ctx, "a"); len(all) != 0 {
		t.Error("an ingest without its lease:", all)
	}
	wr, err := w.Writer(ctx, "a", content.WriteRequest{Ref: "r", Lease: "l"})
	w.must(err)
	_, err = wr.Write(ctx, []byte("leased"))
	w.must(err)
	w.must(wr.Close())
	w.must(w.leases.Collect(ctx))
	if all := w.Statuses(ctx, "a"); len(all) != 1 {
		t.Error("the lease does not hold its ingest")
	}
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "r", Lease: "l"})
	w.must(err)
	info, err := wr.Commit(ctx, 6, "", nil)
	w.must(err)
	w.must(wr.Close())
	if all, err := w.leases.Resources("a", "l"); err != nil || len(all) != 1 || all[0].ID != info.Digest.String() {
		t.Error(all, err)
	}
	w.must(w.leases.Collect(ctx))
	if _, err := w.Info(ctx, "a", info.Digest); err != nil {
		t.Error(err)
	}

	// What is here already belongs to the lease of who wanted to bring it.
	_, err = w.leases.Create(ctx, "a", "m", nil)
	w.must(err)
	_, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "x", Lease: "m", Expected: info.Digest})
	w.kind(err, errs.Exists)
	w.must(w.leases.Delete(ctx, "a", "l"))
	w.must(w.leases.Collect(ctx))
	if _, err := w.Info(ctx, "a", info.Digest); err != nil {
		t.Error("the second lease does not hold it:", err)
	}

	// A lease that ends in the middle: the client is told, and what it had
	// written goes.
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "y", Lease: "m"})
	w.must(err)
	_, err = wr.Write(ctx, []byte("late"))
	w.must(err)
	w.must(w.leases.Delete(ctx, "a", "m"))
	w.must(w.leases.Collect(ctx))
	_, err = wr.Commit(ctx, 0, "", nil)
	w.kind(err, errs.NotFound)
	if !strings.Contains(err.Error(), "lease") {
		t.Error(err)
	}
	w.must(wr.Close())
	w.must(w.leases.Collect(ctx))
	if all, _ := w.List(ctx, "a"); len(all) != 0 || len(w.Statuses(ctx, "a")) != 0 {
		t.Error("left over:", all, w.Statuses(ctx, "a"))
	}
}

// An image's documents hold what they name, in a collection.
func TestCollected(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	layer := w.put("a", []byte("layer"))
	config := w.put("a", []byte("config"))
	root := w.put("a", []byte("manifest"), "containerd.io/gc.root", "now", "containerd.io/gc.ref.content.config", config.String(), "containerd.io/gc.ref.content.l.0", layer.String())
	w.put("a", []byte("garbage"))
	idle, err := w.Writer(ctx, "a", content.WriteRequest{Ref: "for a day"})
	w.must(err)
	w.must(idle.Close())
	w.must(w.leases.Collect(ctx))
	if all, _ := w.List(ctx, "a"); len(all) != 3 || len(w.Statuses(ctx, "a")) != 1 {
		t.Error(all)
	}
	_, err = w.Update(ctx, "a", root, func(labels map[string]string) (map[string]string, error) {
		delete(labels, "containerd.io/gc.ref.content.l.0")
		return labels, nil
	})
	w.must(err)
	w.must(w.leases.Collect(ctx))
	if all, _ := w.List(ctx, "a"); len(all) != 2 {
		t.Error("a layer that nothing names any more:", all)
	}
	w.must(w.db.Update(ctx, func(*kv.Tx) error { return nil }))
	w.close()
	w.open()
	if all, _ := w.List(ctx, "a"); len(all) != 2 {
		t.Error("after opening again:", all)
	}
}

// Blobs of the node's own images are seen in one namespace, and get records
// when clients hold them.
func TestNatives(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	d, err := w.blobs.Put(ctx, []byte("native"))
	w.must(err)
	away := digest.FromString("away")
	w.natives.all = map[digest.Digest]content.Info{
		d:    {Digest: d, Size: 6, Labels: map[string]string{"native": "yes"}},
		away: {Digest: away, Size: 4},
	}
	if info, err := w.Info(ctx, "default", d); err != nil || info.Labels["native"] != "yes" {
		t.Error(info, err)
	}
	_, err = w.Info(ctx, "other", d)
	w.kind(err, errs.NotFound)
	if all, err := w.List(ctx, "default"); err != nil || len(all) != 2 {
		t.Error(all, err)
	}
	if all, err := w.List(ctx, "other"); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	w.kind(w.Delete(ctx, "default", d), errs.Conflict)
	if got := w.read("default", d); got != "native" {
		t.Error(got)
	}
	w.natives.bring = func(digest.Digest) (*os.File, error) {
		f, err := os.CreateTemp(t.TempDir(), "")
		w.must(err)
		_, err = f.WriteAt([]byte("away"), 0)
		return f, err
	}
	if got := w.read("default", away); got != "away" {
		t.Error(got)
	}
	w.natives.bring = func(digest.Digest) (*os.File, error) { return nil, errs.New(errs.Unavailable, "the registry is away") }
	_, err = w.Open(ctx, "default", away)
	w.kind(err, errs.Unavailable)

	w.must(w.leases.Collect(ctx))
	if all, _ := w.List(ctx, "default"); len(all) != 2 {
		t.Error("collected what belongs to images of the node:", all)
	}
	if _, err := w.Update(ctx, "default", d, func(labels map[string]string) (map[string]string, error) {
		labels["mine"] = "yes"
		return labels, nil
	}); err != nil {
		t.Error(err)
	}
	if info, err := w.Info(ctx, "default", d); err != nil || info.Labels["native"] != "yes" || info.Labels["mine"] != "yes" {
		t.Error(info, err)
	}

	// A client's image refers to a blob of the node's: it stays when that goes.
	x, err := w.blobs.Put(ctx, []byte("base layer"))
	w.must(err)
	w.natives.all[x] = content.Info{Digest: x, Size: 10}
	m := w.put("default", []byte("manifest on it"), "containerd.io/gc.root", "1", "containerd.io/gc.ref.content.l.0", x.String())
	w.natives.all = nil
	w.must(w.leases.Collect(ctx))
	if dropped, err := w.Drop(ctx, x); dropped || err != nil || w.read("default", x) != "base layer" {
		t.Error("lost:", err)
	}
	if len(w.natives.came) != 1 || w.natives.came[0] != m {
		t.Error("told:", w.natives.came)
	}
	if _, err := w.Info(ctx, "default", d); errs.KindOf(err) != errs.NotFound {
		t.Error("a record that nothing holds:", err)
	}
}

// A blob whose bytes were lost can be brought again.
func TestLostBytes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	d := w.put("a", []byte("lost"), "k", "v")
	w.must(os.Remove(filepath.Join(w.root, "blobs", "sha256", d.Encoded())))
	_, err := w.Info(ctx, "a", d)
	w.kind(err, errs.NotFound)
	wr, err := w.Writer(ctx, "a", content.WriteRequest{Ref: "again", Expected: d, Total: 4})
	w.must(err)
	_, err = wr.Write(ctx, []byte("lost"))
	w.must(err)
	_, err = wr.Commit(ctx, 4, d, nil)
	w.must(err)
	w.must(wr.Close())
	if got := w.read("a", d); got != "lost" {
		t.Error(got)
	}
}

// A record that cannot be written leaves the ingest as it was, or at its end.
func TestFailedRecord(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	wr, err := w.Writer(ctx, "a", content.WriteRequest{Ref: "r"})
	w.must(err)
	_, err = wr.Write(ctx, []byte("body"))
	w.must(err)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = wr.Commit(canceled, 4, "", nil)
	w.kind(err, errs.Canceled)
	w.must(wr.Close())
	if all, _ := w.List(ctx, "a"); len(all) != 0 {
		t.Error(all)
	}
	wr, err = w.Writer(ctx, "a", content.WriteRequest{Ref: "r"})
	w.must(err)
	if st := wr.Status(); st.Offset != 4 {
		t.Error(st)
	}
	_, err = wr.Commit(ctx, 4, digest.FromString("body"), nil)
	w.must(err)
	w.must(wr.Close())
	if got := w.read("a", digest.FromString("body")); got != "body" {
		t.Error(got)
	}
}
