package snapshottest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// capability is cap_net_raw=ep as the kernel keeps it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func content(e *env) {
	null := entry{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: moment}, ""}
	disk := entry{tar.Header{Name: "dev/disk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 300, ModTime: moment}, ""}
	fifo := entry{tar.Header{Name: "dev/fifo", Typeflag: tar.TypeFifo, Mode: 0o600, ModTime: moment}, ""}
	hole := strings.Repeat("\x00", 4<<20) + "in the middle" + strings.Repeat("\x00", 4<<20)
	name := strings.Repeat("n", 255)
	e.layer("base", "",
		dir("."), dir("bin").mode(0o1777), dir("dev"), dir("home").owner(1000, 2000).mode(0o2750),
		file("bin/su", "#!").mode(0o4755).owner(0, 5), file("bin/wall", "#!").mode(0o6711),
		file("bin/ping", "#!").mode(0o755).xattr("security.capability", capability),
		file("home/mail", "hello").owner(1000, 2000).mode(0o600).xattr("user.note", "a\x00b"),
		file("home/world", "").mode(0o666), file("home/none", "").mode(0),
		link("home/letter", "home/mail"), symlink("home/link", "/etc/passwd"), symlink("home/owned", "mail").owner(7, 8),
		null, disk, fifo, file("sparse", hole), file("end", strings.Repeat("\x00", 1<<20)),
		file("./a/b/../"+name, "long"), file("big", strings.Repeat("x", 300<<10)),
		entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}, ""},
	)
	got := e.look("base")
	got.names(e.T, "bin", "dev", "home", "bin/su", "bin/wall", "bin/ping", "home/mail", "home/world", "home/none", "home/letter",
		"home/link", "home/owned", "dev/null", "dev/disk", "dev/fifo", "sparse", "end", "a", "a/"+name, "big")
	when := " 2024-02-29T12:30:15.123456789Z"
	for path, want := range map[string]string{
		"bin": "041777 0:0" + when, "home": "042750 1000:2000" + when,
		"bin/su": "104755 0:5" + when, "bin/wall": "106711 0:0" + when,
		"home/mail": "100600 1000:2000" + when, "home/world": "100666 0:0" + when, "home/none": "100000 0:0" + when,
		"home/link": "120777 0:0" + when + " -> /etc/passwd", "home/owned": "120777 7:8" + when + " -> mail",
		"dev/null": "020666 0:0" + when + " 1:3", "dev/disk": "060660 0:0" + when + " 259:300", "dev/fifo": "010600 0:0" + when,
	} {
		got.has(e.T, path, want)
	}
	got.has(e.T, "bin/ping", fmt.Sprintf("security.capability=%q", capability))
	got.has(e.T, "home/mail", `user.note="a\x00b"`)
	if !strings.Contains(got["home/mail"]+got["home/letter"], " = home/") {
		e.Error("home/mail and home/letter are not one file")
	}
	e.prepare("work", "base")
	target, _ := e.mount("work")
	for name, most := range map[string]int64{"sparse": 512 << 10, "end": 0} {
		f, err := os.Open(filepath.Join(target, name))
		e.must(err)
		var st unix.Stat_t
		e.must(unix.Fstat(int(f.Fd()), &st)) // overlayfs may not know before a file is open
		e.must(f.Close())
		if st.Blocks*512 > most {
			e.Errorf("%s: %d bytes on disk, want a hole kept", name, st.Blocks*512)
		}
	}
	body, err := os.ReadFile(filepath.Join(target, "sparse"))
	e.must(err)
	if string(body) != hole {
		e.Error("sparse: body differs")
	}
}

func whiteouts(e *env) {
	e.layer("base", "", dir("d"), file("d/a", "1"), file("d/b", "1"), dir("o"), file("o/a", "1"), dir("o/sub"), file("o/sub/x", "1"),
		file("f", "1"), dir("tree"), file("tree/x", "1"), dir("again"), file("again/old", "1"), file("kind", "1"), dir("flip"), file("flip/x", "1"))
	e.layer("top", "base",
		file("d/.wh.a", ""), file("d/c", "2"),
		dir("o"), file("o/new", "2"), file("o/.wh..wh..opq", ""), file(".wh..wh.plnk", ""),
		file(".wh.f", ""), file("f", "2"), // deleted and made anew, in both orders
		file("kind", "2"), file(".wh.kind", ""),
		file(".wh.tree", ""), file(".wh.none", ""),
		file(".wh.again", ""), dir("again"), file("again/new", "2"),
		dir("flip"), file(".wh.flip", ""))
	e.look("top").names(e.T, "d", "d/b", "d/c", "o", "o/new", "f", "kind", "again", "again/new", "flip")
	e.look("base").has(e.T, "d/a", "100644")
	e.layer("empty", "top", file(".wh..wh..opq", ""), file("only", "3"))
	e.look("empty").names(e.T, "only")
	e.layer("back", "empty", dir("d"), file("d/a", "4"))
	e.look("back").names(e.T, "only", "d", "d/a")
	e.layer("bottom", "", file(".wh.nothing", ""), dir("x"), file("x/.wh..wh..opq", ""))
	e.look("bottom").names(e.T, "x")
}

func replaced(e *env) {
	e.layer("base", "",
		file("a", "1"), file("a", "22"),
		file("b", "1"), dir("b"), file("b/x", "1"),
		dir("c"), file("c/x", "1"), dir("c/deep"), file("c/deep/y", "1"), file("c", "now a file"),
		dir("d").mode(0o700), dir("d").mode(0o711),
		file("l1", "one"), link("l2", "l1"), file("l1", "two"),
		symlink("s", "a"), symlink("s", "b"), link("s2", "s"))
	got := e.look("base")
	got.names(e.T, "a", "b", "b/x", "c", "d", "l1", "l2", "s", "s2")
	got.has(e.T, "a", "100644", " 2 ")
	got.has(e.T, "c", "100644")
	got.has(e.T, "d", "040711")
	got.has(e.T, "s", "-> b")
	if got["l1"] == got["l2"] || strings.Contains(got["l2"], "=") {
		e.Errorf("l1 %q and l2 %q: a new file must not change the other name of the old", got["l1"], got["l2"])
	}
}

// implied: a tar may leave out the folders of its files; they then look as in
// the layer below.
func implied(e *env) {
	e.layer("base", "", dir(".").mode(0o711), dir("tmp").mode(0o1777), dir("home").owner(5, 6).xattr("user.a", "b"), dir("gone"), file("gone/x", "1"))
	e.layer("middle", "base", file("other", "1"), file(".wh.gone", ""))
	e.layer("top", "middle", file("tmp/f", "1"), file("home/new/f", "1"), file("gone/y", "1"))
	got := e.look("top")
	got.names(e.T, "tmp", "tmp/f", "home", "home/new", "home/new/f", "gone", "gone/y", "other")
	got.has(e.T, ".", "040711")
	got.has(e.T, "tmp", "041777 0:0", "123456789")
	got.has(e.T, "home", "040755 5:6", `user.a="b"`)
	got.has(e.T, "home/new", "040755 0:0")
	e.prepare("work", "top")
	target, _ := e.mount("work")
	readTree(e.T, target).has(e.T, ".", "040711 0:0")
}

// hidden: what a layer hides below neither lends its looks to implied folders
// nor shows as the name of something that is not there.
func hidden(e *env) {
	e.layer("base", "", dir("o"), dir("o/sub").mode(0o700), file("o/sub/x", "1"), dir("w").mode(0o700), file("w/x", "1"), file("f", "1"))
	e.layer("top", "base", dir("o"), file("o/.wh..wh..opq", ""), file("o/sub/y", "2"), file("o/sub/.wh.x", ""),
		file(".wh.w", ""), file("w/y", "2"), file("new/.wh.none", ""), file("f/g", "2"), file("f/.wh.none", ""))
	got := e.look("top")
	got.names(e.T, "o", "o/sub", "o/sub/y", "w", "w/y", "new", "f", "f/g")
	for _, name := range []string{"o/sub", "w", "new", "f"} {
		got.has(e.T, name, "040755 0:0 1970-01-01T00:00:00Z")
	}
}

// overlayXattrs: an image that itself holds layers of overlayfs must not
// bend the tree that it is mounted as.
func overlayXattrs(e *env) {
	e.layer("base", "", dir("d"), file("d/seen", "1"))
	e.layer("top", "base", dir("d").xattr("trusted.overlay.opaque", "y").xattr("trusted.overlay.redirect", "/etc"),
		file("d/f", "1").xattr("trusted.overlay.metacopy", ""))
	e.look("top").names(e.T, "d", "d/seen", "d/f")
	var out bytes.Buffer
	e.must(e.store.Diff(e.ctx(), "top", &out))
	if !bytes.Contains(out.Bytes(), []byte("SCHILY.xattr.trusted.overlay.redirect=/etc")) {
		e.Error("diff lost the image's own trusted.overlay xattrs")
	}
}

func parallel(e *env) {
	const layers = 12
	ingests := make([]snapshot.Ingest, layers)
	var wg sync.WaitGroup
	for i := range layers {
		wg.Go(func() {
			entries := []entry{file("who", fmt.Sprint(i)), file(fmt.Sprintf("only/%d", i), fmt.Sprint(i))}
			for j := range 50 {
				entries = append(entries, file(fmt.Sprintf("d%d/f%d", j%7, j*(i+1)), fmt.Sprint(i)))
			}
			in, err := e.store.Ingest(e.ctx(), archive(e.T, entries...))
			if err != nil {
				e.Error(err)
			}
			ingests[layers-1-i] = in
		})
	}
	wg.Wait()
	var parent snapshot.Key
	for i, in := range ingests {
		if in == nil {
			e.FailNow()
		}
		if in.Size() < 50 {
			e.Errorf("size of layer %d is %d", i, in.Size())
		}
		name := snapshot.Key(fmt.Sprintf("p%d", i))
		_, err := in.Commit(e.ctx(), name, parent, nil)
		e.must(err)
		parent = name
	}
	e.prepare("work", parent)
	target, _ := e.mount("work")
	for name, want := range map[string]string{"who": "0", "only/11": "11", "only/5": "5", "d1/f1": "0"} {
		got, err := os.ReadFile(filepath.Join(target, name))
		e.must(err)
		if string(got) != want {
			e.Errorf("%s is of layer %s, want %s", name, got, want)
		}
	}
}

func ingestLife(e *env) {
	in, err := e.store.Ingest(e.ctx(), archive(e.T, file("f", "x")))
	e.must(err)
	e.must(in.Abort(e.ctx()))
	e.must(in.Abort(e.ctx()))
	_, err = in.Commit(e.ctx(), "base", "", nil)
	e.want(errs.Conflict, err, "commit of what was dropped")
	_, err = e.store.Stat(e.ctx(), "base")
	e.want(errs.NotFound, err, "stat of what was dropped")

	// A reader is read to its end, beyond the archive's.
	tail := io.MultiReader(archive(e.T, file("f", "x")), strings.NewReader(strings.Repeat("\x00", 100_000)))
	in, err = e.store.Ingest(e.ctx(), tail)
	e.must(err)
	if rest, _ := io.Copy(io.Discard, tail); rest != 0 {
		e.Errorf("%d bytes of the stream were left unread", rest)
	}
	c, err := in.Commit(e.ctx(), "base", "", map[string]string{"a": "b"})
	e.must(err)
	e.must(in.Abort(e.ctx())) // does nothing now
	if c.Kind != snapshot.KindCommitted || c.Labels["a"] != "b" {
		e.Errorf("committed %+v", c)
	}
	_, err = in.Commit(e.ctx(), "again", "", nil)
	e.want(errs.Conflict, err, "commit twice")
	e.look("base").names(e.T, "f")
}

// hostile layers must fail, touch nothing outside and leave nothing behind.
func hostile(e *env) {
	outside := filepath.Join(e.TempDir(), "outside")
	e.must(os.WriteFile(outside, []byte("safe"), 0o600))
	up := strings.Repeat("../", 30)
	deep := strings.Repeat("d/", 10_000)
	for name, entries := range map[string][]entry{
		"parent":              {file("../f", "x")},
		"parent in middle":    {file("a/../../f", "x")},
		"climb":               {file(up+outside[1:], "x")},
		"absolute":            {file(outside, "x")},
		"only parent":         {dir("..")},
		"absolute link":       {symlink("l", filepath.Dir(outside)), file("l/outside", "x")},
		"climbing link":       {symlink("l", up+filepath.Dir(outside)[1:]), file("l/outside", "x")},
		"link of link":        {symlink("a", "/"), symlink("b", "a"), file("b"+outside, "x")},
		"folder through link": {symlink("l", filepath.Dir(outside)), dir("l/new")},
		"whiteout of parent":  {file("a/.wh...", "")},
		"whiteout of self":    {file("a/.wh..", "")},
		"whiteout of nothing": {file("a/.wh.", "")},
		"hard link outside":   {link("l", outside)},
		"hard link climbing":  {link("l", up+outside[1:])},
		"hard link via link":  {symlink("l", filepath.Dir(outside)), link("h", "l/outside")},
		"hard link to none":   {link("l", "none")},
		"hard link to folder": {dir("d"), link("l", "d")},
		"file as folder":      {file("f", "x"), file("f/g", "x")},
		"10,000 deep":         {file(deep+"f", "x")},
		"long name":           {file(strings.Repeat("n", 256), "x")},
		"root is a file":      {file(".", "x")},
		"type":                {entry{tar.Header{Name: "x", Typeflag: 'Z'}, ""}},
		"empty link":          {symlink("l", "")},
	} {
		in, err := e.store.Ingest(e.ctx(), archive(e.T, append([]entry{file("before", "x")}, entries...)...))
		e.want(errs.Invalid, err, name)
		if err == nil {
			e.must(in.Abort(e.ctx()))
		}
	}
	body, err := os.ReadFile(outside)
	e.must(err)
	left, err := os.ReadDir(filepath.Dir(outside))
	e.must(err)
	if string(body) != "safe" || len(left) != 1 {
		e.Errorf("a layer reached outside: body %q, %d files", body, len(left))
	}
	if all := e.all(); len(all) != 0 {
		e.Errorf("snapshots were left: %+v", all)
	}
}

// symlinks: entries below a link to a folder of the same layer go there, for
// such images exist.
func symlinks(e *env) {
	e.layer("base", "", dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/libc", "x"),
		dir("a"), symlink("a/up", "../usr"), file("a/up/f", "x"))
	e.look("base").names(e.T, "usr", "usr/lib", "usr/lib/libc", "lib", "a", "a/up", "usr/f")
}

func broken(e *env) {
	whole, err := io.ReadAll(archive(e.T, file("a", strings.Repeat("x", 5000)), file("b", strings.Repeat("y", 200_000))))
	e.must(err)
	for _, at := range []int{100, 3000, 6144 + 100, 10_000, 150_000} {
		_, err := e.store.Ingest(e.ctx(), bytes.NewReader(whole[:at]))
		e.want(errs.Invalid, err, fmt.Sprintf("layer cut at %d", at))
	}
	_, err = e.store.Ingest(e.ctx(), strings.NewReader(strings.Repeat("not a tar ", 1000)))
	e.want(errs.Invalid, err, "no tar")
	lost := errs.New(errs.Unavailable, "line cut")
	for _, at := range []int64{700, 3000, 100_000} {
		cut := io.MultiReader(io.LimitReader(bytes.NewReader(whole), at), iotest.ErrReader(lost))
		_, err = e.store.Ingest(e.ctx(), cut)
		e.want(errs.Unavailable, err, "stream failed")
		if !errors.Is(err, lost) {
			e.Errorf("stream failed: %v does not hold the reader's error", err)
		}
	}
	if all := e.all(); len(all) != 0 {
		e.Errorf("snapshots were left: %+v", all)
	}
}
