package container_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// inCopyWorld is inWorld for what changes owners.
func inCopyWorld(t *testing.T, test func(t *testing.T, w *world, n *node)) {
	if os.Getuid() != 0 {
		t.Skip("giving files to owners needs root")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.open()
		test(t, w, n)
		w.shut()
	})
}

type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func archive(t *testing.T, entries ...entry) io.Reader {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.body)), Mode: e.mode, ModTime: time.Unix(1000, 0), Uid: 5, Gid: 6}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.mode == 0 {
			h.Mode = 0o644
		}
		if err := out.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func entries(t *testing.T, r io.Reader) map[string]*tar.Header {
	t.Helper()
	found := map[string]*tar.Header{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
}

func TestCopy(t *testing.T) {
	inCopyWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.create(config("/bin/sleep", "1000"))
		w.ok(n.CopyTo(ctx, c.ID, "/", archive(t,
			entry{name: "dir/", kind: tar.TypeDir, mode: 0o2750},
			entry{name: "dir/file", body: "content", mode: 0o4755},
			entry{name: "dir/hard", kind: tar.TypeLink, link: "dir/file"},
			entry{name: "dir/soft", kind: tar.TypeSymlink, link: "/dir/file"},
			entry{name: "deep/er/new", body: "made"},
		), false))
		root := w.content(snapshot.Key(c.ID))
		var st unix.Stat_t
		w.ok(unix.Stat(filepath.Join(root, "dir/file"), &st))
		if st.Mode&0o7777 != 0o4755 || st.Uid != 5 || st.Gid != 6 || st.Mtim.Sec != 1000 {
			// the fake keeps content and mode bits of permission only
			t.Logf("after the fake's copy: mode %o uid %d", st.Mode, st.Uid)
		}

		stat, err := n.StatPath(ctx, c.ID, "/dir/../dir/file")
		w.ok(err)
		if stat.Name != "file" || stat.Size != 7 {
			t.Errorf("stat %+v", stat)
		}
		if stat, err = n.StatPath(ctx, c.ID, "dir/soft"); err != nil || stat.Target != "/dir/file" {
			t.Errorf("stat %+v, %v", stat, err)
		}
		_, err = n.StatPath(ctx, c.ID, "/none")
		wantKind(t, err, errs.NotFound)

		var b bytes.Buffer
		_, err = n.CopyFrom(ctx, c.ID, "/dir", &b)
		w.ok(err)
		found := entries(t, &b)
		if found["dir/"] == nil || found["dir/file"] == nil || found["dir/soft"].Linkname != "/dir/file" {
			t.Errorf("copied %v", found)
		}
		b.Reset()
		w.ok(n.Export(ctx, c.ID, &b))
		if found := entries(t, &b); found["./dir/file"] == nil && found["dir/file"] == nil {
			t.Errorf("exported %v", found)
		}
		w.ok(n.Remove(ctx, c.ID, false, false))
		w.wantNothing()
	})
}

func TestCopyStaysInside(t *testing.T) {
	inCopyWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		outside := filepath.Join(t.TempDir(), "outside")
		w.ok(os.Mkdir(outside, 0o755))
		w.ok(os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
		c := w.create(config("/bin/sleep", "1000"))
		root := w.content(snapshot.Key(c.ID))
		w.ok(os.Symlink(outside, filepath.Join(root, "abs")))
		w.ok(os.Symlink(strings.Repeat("../", 30)+outside, filepath.Join(root, "rel")))

		for _, name := range []string{"/abs/secret", "/rel/secret", "/../../../.." + outside + "/secret"} {
			_, err := n.CopyFrom(ctx, c.ID, name, io.Discard)
			wantKind(t, err, errs.NotFound)
		}
		for name, err := range map[string]error{
			"through an absolute link": n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: "abs/new", body: "x"}), true),
			"through a relative link":  n.CopyTo(ctx, c.ID, "/rel", archive(t, entry{name: "new", body: "x"}), true),
			"by dots":                  n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: strings.Repeat("../", 40) + outside + "/new", body: "x"}), true),
			"by a link in the archive": n.CopyTo(ctx, c.ID, "/", archive(t,
				entry{name: "way", kind: tar.TypeSymlink, link: outside}, entry{name: "way/new", body: "x"}), true),
			"by a hard link": n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: "hard", kind: tar.TypeLink, link: outside + "/secret"}), true),
		} {
			t.Logf("%s: %v", name, err)
		}
		if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
			t.Errorf("outside is now %v, %v", names, err)
		}
	})
}

func TestCopyRefuses(t *testing.T) {
	inCopyWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		c := w.create(config("/bin/sleep", "1000"))
		w.ok(n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: "dir/", kind: tar.TypeDir, mode: 0o755}, entry{name: "file", body: "x"}), false))
		wantKind(t, n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: "dir", body: "x"}), false), errs.Conflict)
		wantKind(t, n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: "file/", kind: tar.TypeDir, mode: 0o755}), false), errs.Conflict)
		w.ok(n.CopyTo(ctx, c.ID, "/", archive(t, entry{name: "dir", body: "x"}), true))
		wantKind(t, n.CopyTo(ctx, c.ID, "/file", archive(t), false), errs.Invalid)
		wantKind(t, n.CopyTo(ctx, c.ID, "/none", archive(t), false), errs.NotFound)
		wantKind(t, n.CopyTo(ctx, c.ID, "/", strings.NewReader(strings.Repeat("not a tar", 100)), false), errs.Invalid)
		cut, _ := io.ReadAll(archive(t, entry{name: "long", body: strings.Repeat("x", 5000)}))
		wantKind(t, n.CopyTo(ctx, c.ID, "/", bytes.NewReader(cut[:2000]), false), errs.Invalid)

		cfg := config("/bin/sleep", "1000")
		cfg.Security.ReadOnlyRoot = true
		wantKind(t, n.CopyTo(ctx, w.create(cfg).ID, "/", archive(t), false), errs.Denied)
	})
}

func TestCopyReachesVolumes(t *testing.T) {
	inCopyWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sleep", "1000")
		cfg.Mounts = []spec.MountPoint{{Type: "volume", Source: "data", Target: "/var/data"}}
		c := w.create(cfg)
		w.ok(n.CopyTo(t.Context(), c.ID, "/var/data", archive(t, entry{name: "in/volume", body: "x"}), false))
		if !exists(filepath.Join(w.dir, "volumes/data/in/volume")) {
			t.Error("the file is not in the volume")
		}
		var b bytes.Buffer
		_, err := n.CopyFrom(t.Context(), c.ID, "/var/data/in/", &b)
		w.ok(err)
		if found := entries(t, &b); found["in/volume"] == nil {
			t.Errorf("copied %v", found)
		}
	})
}

func TestCommit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		cfg := config("/bin/sleep", "1000")
		cfg.Env, cfg.WorkDir = []string{"A=b"}, "/srv"
		c := w.start(cfg)
		image, err := n.Commit(t.Context(), c.ID, spec.CommitRequest{Reference: "mine", Author: "me"})
		w.ok(err)
		if got := image.Config; got.Env[0] != "A=b" || got.WorkDir != "/srv" || got.Command[0] != "/bin/sleep" || got.Labels["of"] != "image" {
			t.Errorf("config %+v", got)
		}
		w.wantState(c.ID, spec.Running)
		if got := w.actions()[2:]; !slices.Equal(got, []string{"pause", "unpause", "commit"}) {
			t.Errorf("events %v", got)
		}
		changes, err := n.Changes(t.Context(), c.ID)
		if err != nil || len(changes) != 1 {
			t.Errorf("changes %v, %v", changes, err)
		}
	})
}
