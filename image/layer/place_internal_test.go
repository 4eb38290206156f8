package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

func folderOf(name string) tar.Header {
	return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(5, 6)}
}

func link(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o700}
}

func of(kind byte, h tar.Header) tar.Header { h.Typeflag = kind; return h }

func mode(m int64, h tar.Header) tar.Header { h.Mode = m; return h }

func xattr(name, value string, h tar.Header) tar.Header {
	h.PAXRecords = maps.Clone(h.PAXRecords)
	if h.PAXRecords == nil {
		h.PAXRecords = map[string]string{}
	}
	h.PAXRecords["SCHILY.xattr."+name] = value
	return h
}

// lines describes a tree, a path in a line.
func lines(root *tree.Node) []string {
	var all []string
	first := map[*tree.Node]string{}
	tree.Walk(root, func(path string, n *tree.Node) error {
		line := fmt.Sprintf("%s %06o", path, n.Mode)
		switch {
		case n.IsWhiteout():
			line = path + " whiteout"
		case n.Type() == unix.S_IFLNK:
			line += " -> " + n.Target
		case n.IsRegular():
			line += fmt.Sprint(" ", n.Size)
		case n.Rdev != 0:
			line += fmt.Sprintf(" %d:%d", unix.Major(n.Rdev), unix.Minor(n.Rdev))
		}
		if n.Opaque {
			line += " opaque"
		}
		if n.Implied {
			line += " implied"
		}
		for _, x := range n.Xattrs {
			line += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		if !n.IsDir() {
			if other, ok := first[n]; ok {
				line += " = " + other
			} else {
				first[n] = path
			}
		}
		all = append(all, line)
		return nil
	})
	return all
}

func TestTrees(t *testing.T) {
	cap2 := "\x01\x00\x00\x02" + strings.Repeat("\x00", 16)
	for name, c := range map[string]struct {
		entries []tar.Header
		want    []string
	}{
		"plain": {
			[]tar.Header{mode(0o711, folderOf(".")), folderOf("d"), file("d/f", 3), symlink("d/l", "/etc/passwd"), of(tar.TypeFifo, mode(0o4600, file("p", 0))), file("./d/x/../g", 1)},
			[]string{". 040711", "d 040755", "d/f 100644 3", "d/g 100644 1", "d/l 120777 -> /etc/passwd", "p 014600"},
		},
		"implied":        {[]tar.Header{file("a/b/c", 1), folderOf("a")}, []string{". 040755 implied", "a 040755", "a/b 040755 implied", "a/b/c 100644 1"}},
		"twice":          {[]tar.Header{file("a", 1), file("a", 22)}, []string{". 040755 implied", "a 100644 22"}},
		"file to folder": {[]tar.Header{file("a", 1), folderOf("a"), file("a/b", 1)}, []string{". 040755 implied", "a 040755", "a/b 100644 1"}},
		"folder to file": {[]tar.Header{file("a/b/c", 1), file("a", 2)}, []string{". 040755 implied", "a 100644 2"}},
		"folder comes back": {[]tar.Header{file("a/b/c", 1), file("a", 2), file("b", 1), folderOf("a"), file("a/b/d", 1)}, []string{
			". 040755 implied", "a 040755", "a/b 040755 implied", "a/b/d 100644 1", "b 100644 1",
		}},
		"folder twice": {[]tar.Header{folderOf("d"), file("d/f", 1), mode(0o700, folderOf("d"))}, []string{". 040755 implied", "d 040700", "d/f 100644 1"}},
		"links": {[]tar.Header{file("a", 1), link("b", "a"), link("c", "./b"), file("a", 2), symlink("s", "a"), link("s2", "s")}, []string{
			". 040755 implied", "a 100644 2", "b 100644 1", "c 100644 1 = b", "s 120777 -> a", "s2 120777 -> a = s",
		}},
		"link to itself":     {[]tar.Header{file("a", 1), link("a", "a")}, []string{". 040755 implied", "a 100644 1"}},
		"link over a folder": {[]tar.Header{file("f", 1), file("d/x", 1), link("d", "f")}, []string{". 040755 implied", "d 100644 1", "f 100644 1 = d"}},
		"whiteouts": {
			[]tar.Header{
				file("d/.wh.gone", 0), file(".wh.f", 0), file("f", 1), file("g", 1), file(".wh.g", 0), folderOf("h"), file(".wh.h", 0), file("h/x", 1),
				file(".wh.i", 0), file("i/x", 1), file(".wh.j", 0), folderOf("j"), file(".wh..wh.plnk", 0), of(tar.TypeChar, file("k", 0)), file(".wh.k", 0),
			},
			[]string{
				". 040755 implied", "d 040755 implied", "d/gone whiteout", "f 100644 1", "g 100644 1", "h 040755 opaque", "h/x 100644 1",
				"i 040755 opaque", "i/x 100644 1", "j 040755 opaque", "k whiteout",
			},
		},
		"opaque": {[]tar.Header{file(".wh..wh..opq", 0), file("d/.wh..wh..opq", 0), folderOf("d")}, []string{". 040755 opaque implied", "d 040755 opaque"}},
		"symlinks": {[]tar.Header{folderOf("usr/lib"), symlink("lib", "usr/lib"), file("lib/libc", 1), file("lib/deep/a", 1), file("lib/deep/b", 1), folderOf("a"), symlink("a/up", "../usr"), file("a/up/f", 1)}, []string{
			". 040755 implied", "a 040755", "a/up 120777 -> ../usr", "lib 120777 -> usr/lib", "usr 040755 implied", "usr/f 100644 1", "usr/lib 040755",
			"usr/lib/deep 040755 implied", "usr/lib/deep/a 100644 1", "usr/lib/deep/b 100644 1", "usr/lib/libc 100644 1",
		}},
		"symlink goes": {[]tar.Header{folderOf("d"), symlink("l", "d"), file("l/x", 1), folderOf("l"), file("l/y", 1)}, []string{
			". 040755 implied", "d 040755", "d/x 100644 1", "l 040755", "l/y 100644 1",
		}},
		"devices": {[]tar.Header{
			{Name: "c", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
			{Name: "b", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 4095, Devminor: 1<<20 - 1},
			{Name: "b0", Typeflag: tar.TypeBlock, Mode: 0o660},
		}, []string{". 040755 implied", "b 060660 4095:1048575", "b0 060660", "c 020666 1:3"}},
		"xattrs": {[]tar.Header{
			xattr("trusted.overlay.opaque", "y", xattr("user.b", "\x00", xattr("user.a", "", folderOf("d")))),
			xattr("other.system", "x", xattr("user.", "x", xattr("security.capability", cap2, file("f", 1)))),
			xattr("security.selinux", "x", xattr("user.no", "x", symlink("s", "x"))), xattr("user.no", "x", of(tar.TypeFifo, file("p", 0))),
		}, []string{
			". 040755 implied", `d 040755 trusted.overlay.opaque="y" user.a="" user.b="\x00"`, fmt.Sprintf("f 100644 1 security.capability=%q", cap2),
			"p 010644", `s 120777 -> x security.selinux="x"`,
		}},
		"acls": {[]tar.Header{
			xattr("system.posix_acl_access", acl(1, 7, 0, 2, 5, 1000, 4, 1, 0, 0x10, 5, 0, 0x20, 4, 0), file("named", 1)),
			xattr("system.posix_acl_access", acl(1, 6, 0, 4, 4, 0, 0x20, 0, 0), mode(0o4755, file("plain", 1))),
			xattr("system.posix_acl_access", acl(), file("none", 1)),
			xattr("system.posix_acl_default", acl(1, 7, 0, 4, 5, 0, 0x20, 0, 0), folderOf("d")),
			xattr("system.posix_acl_access", "whatever", symlink("l", "x")),
		}, []string{
			". 040755 implied", fmt.Sprintf("d 040755 system.posix_acl_default=%q", acl(1, 7, 0, 4, 5, 0, 0x20, 0, 0)), "l 120777 -> x",
			fmt.Sprintf("named 100754 1 system.posix_acl_access=%q", acl(1, 7, 0, 2, 5, 1000, 4, 1, 0, 0x10, 5, 0, 0x20, 4, 0)),
			"none 100644 1", "plain 104640 1",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			root := checkRead(t, archiveOf(t, tar.FormatPAX, c.entries...), 64)
			if root == nil {
				t.Fatal("rejected")
			}
			if got := lines(root); !slices.Equal(got, c.want) {
				t.Errorf("tree is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// acl spells kind, permissions and id of each entry as the kernel does.
func acl(parts ...uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(parts); i += 3 {
		id := parts[i+2]
		if id == 0 {
			id = 1<<32 - 1
		}
		b = binary.LittleEndian.AppendUint16(b, uint16(parts[i]))
		b = binary.LittleEndian.AppendUint16(b, uint16(parts[i+1]))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return string(b)
}

func TestHostile(t *testing.T) {
	up := strings.Repeat("../", 30)
	owner := func(uid, gid int) tar.Header { h := file("f", 1); h.Uid, h.Gid = uid, gid; return h }
	for name, entries := range map[string][]tar.Header{
		"parent":              {file("../f", 1)},
		"parent in middle":    {file("a/../../f", 1)},
		"climb":               {file(up+"etc/passwd", 1)},
		"absolute":            {file("/etc/passwd", 1)},
		"only parent":         {folderOf("..")},
		"absolute link":       {symlink("l", "/etc"), file("l/passwd", 1)},
		"climbing link":       {symlink("l", up+"etc"), file("l/passwd", 1)},
		"link of link":        {folderOf("d"), symlink("a", "d"), symlink("b", "a"), file("b/f", 1)},
		"link to itself":      {symlink("a", "a"), file("a/f", 1)},
		"folder through link": {symlink("l", "/etc"), folderOf("l/new")},
		"whiteout of parent":  {file("a/.wh...", 0)},
		"whiteout of self":    {file("a/.wh..", 0)},
		"whiteout of nothing": {file("a/.wh.", 0)},
		"hard link outside":   {link("l", "/etc/passwd")},
		"hard link climbing":  {link("l", up+"etc/passwd")},
		"hard link via link":  {folderOf("d"), file("d/f", 1), symlink("l", "d"), link("h", "l/f")},
		"hard link to none":   {link("l", "none")},
		"hard link to later":  {link("l", "f"), file("f", 1)},
		"hard link to folder": {folderOf("d"), link("l", "d")},
		"hard link to gone":   {file(".wh.f", 0), link("l", "f")},
		"hard link into own":  {file("d/f", 1), link("d", "d/f")},
		"file as folder":      {file("f", 1), file("f/g", 1)},
		"10,000 deep":         {file(strings.Repeat("d/", 10_000)+"f", 1)},
		"long name":           {file(strings.Repeat("n", 256), 1)},
		"long folder":         {file(strings.Repeat("n", 256)+"/f", 1)},
		"root is a file":      {file(".", 1)},
		"root is a link":      {symlink(".", "/")},
		"empty link":          {symlink("l", "")},
		"long link":           {symlink("l", strings.Repeat("l", 4096))},
		"owner":               {owner(1<<32-1, 0)},
		"group":               {owner(0, 1<<33)},
		"negative owner":      {owner(-1, 0)},
		"device":              {{Name: "c", Typeflag: tar.TypeChar, Devmajor: 4096, Devminor: 3}},
		"minor device":        {{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1 << 20}},
		"long xattr name":     {xattr("user."+strings.Repeat("n", 251), "x", file("f", 1))},
		"escaped xattr name":  {xattr("trusted.overlay."+strings.Repeat("n", 235), "x", file("f", 1))},
		"long xattr":          {xattr("user.a", strings.Repeat("v", 1<<16), file("f", 1))},
		"many xattrs":         {xattr("user.c", strings.Repeat("v", 60_000), xattr("user.a", strings.Repeat("v", 60_000), xattr("user.b", strings.Repeat("v", 60_000), file("f", 1))))},
		"capability":          {xattr("security.capability", "\x01\x00\x00\x02short", file("f", 1))},
		"acl":                 {xattr("system.posix_acl_access", "whatever", file("f", 1))},
		"acl version":         {xattr("system.posix_acl_access", "\x03\x00\x00\x00", file("f", 1))},
		"acl out of order":    {xattr("system.posix_acl_access", acl(4, 1, 0, 1, 7, 0, 0x20, 4, 0), file("f", 1))},
		"acl without mask":    {xattr("system.posix_acl_access", acl(1, 7, 0, 2, 5, 1000, 4, 1, 0, 0x20, 4, 0), file("f", 1))},
		"acl without other":   {xattr("system.posix_acl_access", acl(1, 7, 0, 4, 1, 0), file("f", 1))},
		"acl permissions":     {xattr("system.posix_acl_access", acl(1, 8, 0, 4, 1, 0, 0x20, 4, 0), file("f", 1))},
		"default of a file":   {xattr("system.posix_acl_default", acl(1, 7, 0, 4, 5, 0, 0x20, 0, 0), file("f", 1))},
	} {
		t.Run(name, func(t *testing.T) {
			format := tar.FormatPAX
			if strings.Contains(name, "owner") || strings.Contains(name, "device") || name == "group" {
				format = tar.FormatGNU
			}
			archive := archiveOf(t, format, append([]tar.Header{file("before", 5000)}, entries...)...)
			if root := checkRead(t, archive, 64); root != nil {
				t.Errorf("accepted:\n%s", strings.Join(lines(root), "\n"))
			}
		})
	}
	for name, archive := range map[string][]byte{
		"type":        retype(archiveOf(t, tar.FormatUSTAR, file("f", 1)), 'Z'),
		"no tar":      bytes.Repeat([]byte("not a tar "), 1000),
		"zero byte":   edit(archiveOf(t, tar.FormatGNU, symlink("l", "x")), func(h []byte) { copy(h[157:], "\x00x") }),
		"no name":     edit(archiveOf(t, tar.FormatGNU, file("l", 1)), func(h []byte) { h[0] = 0 }),
		"long record": retype(archiveOf(t, tar.FormatUSTAR, file("f", 1<<20+1)), 'x'),
	} {
		if root := checkRead(t, archive, 0); root != nil {
			t.Errorf("%s: accepted:\n%s", name, strings.Join(lines(root), "\n"))
		}
	}
}

func TestLimits(t *testing.T) {
	archive := archiveOf(t, tar.FormatUSTAR, file("f", 100_000))
	for limit, ok := range map[int64]bool{0: true, int64(len(archive)): true, int64(len(archive)) - 1: false, 50_000: false} {
		_, err := Read(t.Context(), Config{MaxBytes: limit}, bytes.NewReader(archive))
		if (err == nil) != ok || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("limit %d of %d: %v", limit, len(archive), err)
		}
	}
	if _, err := Read(t.Context(), Config{MaxBytes: 50_000}, bytes.NewReader(oldSparse(t))); !errors.Is(err, errs.Invalid) {
		t.Errorf("holes beyond the limit: %v", err)
	}
}

func TestLooks(t *testing.T) {
	h := file("f", 1)
	h.Uid, h.Gid, h.ModTime = 1<<31+1, 1<<32-2, time.Unix(-2, 5e8)
	root := checkRead(t, archiveOf(t, tar.FormatPAX, h), 0)
	n := root.Lookup("f")
	if n.UID != 1<<31+1 || n.GID != 1<<32-2 || n.Sec != -2 || n.Nsec != 5e8 {
		t.Errorf("node %+v", n)
	}
}

func TestManyNames(t *testing.T) {
	const n = 100_000
	var entries []tar.Header
	for i := range n {
		entries = append(entries, file(fmt.Sprintf("d/%x", uint32(i)*2654435761), 0))
	}
	archive := archiveOf(t, tar.FormatUSTAR, entries...)
	begin := time.Now()
	root, err := Read(t.Context(), Config{}, bytes.NewReader(archive))
	if err != nil || len(root.Lookup("d").Entries()) != n {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 2*time.Minute {
		t.Errorf("took %v", took)
	}
}

// A layer of some kilobytes, as it comes, can name more than there is memory
// for.
func TestBombs(t *testing.T) {
	records := strings.Repeat("x", 1<<20-1)
	x := retype(archiveOf(t, tar.FormatUSTAR, file("x", int64(len(records)))), 'x')
	x = x[:len(x)-1024]
	record := []byte("1048575 comment=")
	copy(x[512:], record)
	x[512+len(records)-1] = '\n'
	for name, next := range map[string]func(i int) []byte{
		"files":   func(i int) []byte { return archiveOf(t, tar.FormatUSTAR, file(fmt.Sprint(i), 0))[:512] },
		"folders": func(i int) []byte { return deep(t, i) },
		"xattrs": func(i int) []byte {
			a := archiveOf(t, tar.FormatPAX, xattr("user.a", strings.Repeat("v", 60_000), xattr("user.b", strings.Repeat("v", 60_000), file(fmt.Sprint(i), 0))))
			return a[:len(a)-1024]
		},
		"records": func(int) []byte { return x },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			b.left = 2 << 20
			src := &source{ctx: t.Context(), r: &endless{next: next}, left: 1 << 30}
			s, err := newStream(src, hashes{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = (&reader{stream: s, builder: b, left: 1 << 30}).run()
			if !errors.Is(err, errs.Invalid) || errors.Is(err, errTooBig) {
				t.Errorf("error %v", err)
			}
			s.finish(true)
		})
	}
}

func deep(t *testing.T, i int) []byte {
	a := archiveOf(t, tar.FormatPAX, file(fmt.Sprint(i)+strings.Repeat("/d", 2000), 0))
	return a[:len(a)-1024]
}

// endless is a stream of what next makes.
type endless struct {
	next func(i int) []byte
	n    int
	rest []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		e.rest = e.next(e.n)
		e.n++
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}
