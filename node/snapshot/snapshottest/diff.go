package snapshottest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// scene is a base layer and an Active snapshot with every kind of change.
func (e *env) scene() {
	e.layer("base", "",
		dir("etc"), file("etc/passwd", "root"), file("etc/hosts", "h"), dir("etc/deep"), file("etc/deep/x", "1"), file("etc/deep/y", "1"),
		dir("old"), file("old/a", "1"), dir("old/sub"), file("old/sub/b", "1"), dir("swap"), file("swap/x", "1"), file("kind", "f"),
		dir("quiet"), file("quiet/f", "1"), file("mode", "m"))
	e.prepare("work", "base")
	e.change("work", func(root string) {
		at := func(name string) string { return filepath.Join(root, name) }
		e.must(os.WriteFile(at("etc/passwd"), []byte("root and me"), 0o644))
		e.must(os.Remove(at("etc/hosts")))
		e.must(os.WriteFile(at("etc/deep/x"), []byte("2"), 0o600))
		e.must(os.RemoveAll(at("old")))
		e.must(os.RemoveAll(at("swap")))
		e.must(os.Mkdir(at("swap"), 0o750))
		e.must(os.WriteFile(at("swap/new"), []byte("2"), 0o644))
		e.must(os.Remove(at("kind")))
		e.must(os.Mkdir(at("kind"), 0o755))
		e.must(os.Chmod(at("mode"), 0o4711))
		e.must(os.MkdirAll(at("new/dir"), 0o755))
		e.must(os.WriteFile(at("new/f"), []byte(strings.Repeat("z", 70_000)), 0o644))
		e.must(os.Link(at("new/f"), at("new/hard")))
		e.must(os.Symlink("f", at("new/soft")))
		e.must(unix.Mkfifo(at("new/fifo"), 0o600))
		e.must(unix.Mknod(at("new/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		e.must(os.Chown(at("new/dir"), 12, 34))
		e.must(unix.Lsetxattr(at("new/f"), "user.k", []byte("v"), 0))
		e.must(unix.Lsetxattr(at("new/f"), "security.capability", []byte(capability), 0))
		for _, name := range []string{"etc/passwd", "new/f", "new/dir", "new"} {
			e.must(os.Chtimes(at(name), moment, moment.Add(time.Nanosecond)))
		}
	})
}

// diff: the diff of a snapshot, ingested on the same parent, is the same tree.
func diff(e *env) {
	e.scene()
	var first, second, third bytes.Buffer
	e.must(e.store.Diff(e.ctx(), "work", &first))
	e.must(e.store.Diff(e.ctx(), "work", &second))
	_, err := e.store.Commit(e.ctx(), "top", "work", nil)
	e.must(err)
	e.must(e.store.Diff(e.ctx(), "top", &third))
	if !bytes.Equal(first.Bytes(), second.Bytes()) || !bytes.Equal(first.Bytes(), third.Bytes()) {
		e.Error("two diffs of one tree differ")
	}
	in, err := e.store.Ingest(e.ctx(), &first)
	e.must(err)
	_, err = in.Commit(e.ctx(), "copy", "base", nil)
	e.must(err)
	want := e.look("top")
	want.names(e.T, "etc", "etc/passwd", "etc/deep", "etc/deep/x", "etc/deep/y", "swap", "swap/new", "kind", "quiet", "quiet/f",
		"mode", "new", "new/dir", "new/f", "new/hard", "new/soft", "new/fifo", "new/null")
	same(e.T, e.look("copy"), want)
	var again bytes.Buffer
	e.must(e.store.Diff(e.ctx(), "copy", &again))
	if !bytes.Equal(again.Bytes(), second.Bytes()) {
		e.Error("the diff of an ingested diff is another")
	}
	_, err = e.store.View(e.ctx(), "view", "top", nil)
	e.must(err)
	var nothing bytes.Buffer
	e.must(e.store.Diff(e.ctx(), "view", &nothing))
	in, err = e.store.Ingest(e.ctx(), &nothing)
	e.must(err)
	if in.Size() != 0 {
		e.Errorf("diff of a view holds %d bytes", in.Size())
	}
	e.must(in.Abort(e.ctx()))
	if err := e.store.Diff(e.ctx(), "top", failingWriter{}); err == nil || !strings.Contains(err.Error(), "no room") {
		e.Errorf("diff into a failing writer: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errs.New(errs.Exhausted, "no room") }

// diffOfLayer: what was ingested comes out again, on whatever parent.
func diffOfLayer(e *env) {
	e.layer("base", "", dir("a"), file("a/f", "1"), dir("b"), file("b/f", "1"), file("c", "1"))
	e.layer("top", "base", dir("a"), file("a/.wh.f", ""), dir("b"), file("b/.wh..wh..opq", ""), file("b/g", "2"), file(".wh.c", ""),
		file("d", "2").owner(3, 4), link("e", "d"))
	var out bytes.Buffer
	e.must(e.store.Diff(e.ctx(), "top", &out))
	in, err := e.store.Ingest(e.ctx(), &out)
	e.must(err)
	_, err = in.Commit(e.ctx(), "copy", "base", nil)
	e.must(err)
	want := e.look("top")
	want.names(e.T, "a", "b", "b/g", "d", "e")
	same(e.T, e.look("copy"), want)
}

func changes(e *env) {
	e.scene()
	want := []spec.Change{
		{Kind: "C", Path: "/etc"},
		{Kind: "C", Path: "/etc/deep"},
		{Kind: "C", Path: "/etc/deep/x"},
		{Kind: "D", Path: "/etc/hosts"},
		{Kind: "C", Path: "/etc/passwd"},
		{Kind: "C", Path: "/kind"},
		{Kind: "C", Path: "/mode"},
		{Kind: "A", Path: "/new"},
		{Kind: "A", Path: "/new/dir"},
		{Kind: "A", Path: "/new/f"},
		{Kind: "A", Path: "/new/fifo"},
		{Kind: "A", Path: "/new/hard"},
		{Kind: "A", Path: "/new/null"},
		{Kind: "A", Path: "/new/soft"},
		{Kind: "D", Path: "/old"},
		{Kind: "C", Path: "/swap"},
		{Kind: "A", Path: "/swap/new"},
		{Kind: "D", Path: "/swap/x"},
	}
	check := func(key snapshot.Key) {
		e.Helper()
		got, err := e.store.Changes(e.ctx(), key)
		e.must(err)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			e.Errorf("changes of %s:\n got %v\nwant %v", key, got, want)
		}
	}
	check("work")
	_, err := e.store.Commit(e.ctx(), "top", "work", nil)
	e.must(err)
	check("top")
	e.prepare("none", "top")
	want = nil
	check("none")
}

// foreignMount mounts as mount(8) does.
func foreignMount(e *env, mounts []snapshot.Mount, target string) {
	e.Helper()
	for _, m := range mounts {
		var flags uintptr
		var data []string
		for _, option := range m.Options {
			switch option {
			case "bind":
				flags |= unix.MS_BIND
			case "rbind":
				flags |= unix.MS_BIND | unix.MS_REC
			case "ro":
				flags |= unix.MS_RDONLY
			case "rw":
			default:
				data = append(data, option)
			}
		}
		e.must(unix.Mount(m.Source, target, m.Type, flags, strings.Join(data, ",")))
	}
}
