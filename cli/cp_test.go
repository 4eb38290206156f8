package cli

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"web:/etc/hosts": {container: "web", path: "/etc/hosts"},
		"web:etc/":       {container: "web", path: "/etc", folder: true},
		"web:/etc/.":     {container: "web", path: "/etc", inside: true},
		"web:.":          {container: "web", path: "/", inside: true},
		"web:/":          {container: "web", path: "/", folder: true},
		"web:../../x":    {container: "web", path: "/x"},
		"./a:b":          {path: "a:b"},
		"/a:b":           {path: "/a:b"},
		"dir/":           {path: "dir", folder: true},
		"dir/.":          {path: "dir", inside: true},
		".":              {path: ".", inside: true},
		"-":              {stream: true},
	} {
		got, err := parsePlace(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "web:"} {
		if _, err := parsePlace(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// tree lists what is below a folder, with what can be compared of each.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		below, _ := filepath.Rel(dir, file)
		line := below + " " + info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			line += " " + string(content) + " " + info.ModTime().UTC().Format(time.DateTime)
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(file)
			line += " -> " + target
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write1(t *testing.T, name, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestPackAndUnpack(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	write1(t, filepath.Join(source, "a"), "A", 0o640)
	write1(t, filepath.Join(source, "sub/tool"), "#!", 0o755|fs.ModeSetuid)
	write1(t, filepath.Join(source, "ro/file"), "R", 0o444)
	for _, err := range []error{
		os.Symlink("../a", filepath.Join(source, "sub/link")),
		os.Link(filepath.Join(source, "a"), filepath.Join(source, "b")),
		os.Chmod(filepath.Join(source, "ro"), 0o555),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, name := range []string{"source/ro", "out/ro"} {
			_ = os.Chmod(filepath.Join(dir, name), 0o755)
		}
	})
	var archive bytes.Buffer
	n, err := pack(&archive, source, "renamed", false, false)
	if err != nil || n != 4 { // the hard link counts once
		t.Fatalf("packed %d bytes: %v", n, err)
	}
	target := filepath.Join(dir, "out")
	for range 2 { // again, over what is there
		if n, err = unpack(bytes.NewReader(archive.Bytes()), target, false); err != nil || n != 4 {
			t.Fatalf("unpacked %d bytes: %v", n, err)
		}
	}
	if got, want := tree(t, target), tree(t, source); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	a, _ := os.Stat(filepath.Join(target, "a"))
	b, _ := os.Stat(filepath.Join(target, "b"))
	if !os.SameFile(a, b) {
		t.Error("the hard link became a copy")
	}
	reader := tar.NewReader(&archive)
	for header, err := reader.Next(); err == nil; header, err = reader.Next() {
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" {
			t.Errorf("%s belongs to %d:%d %s", header.Name, header.Uid, header.Gid, header.Uname)
		}
	}
}

func TestPackFollowsLinkWhenAsked(t *testing.T) {
	dir := t.TempDir()
	write1(t, filepath.Join(dir, "real/f"), "x", 0o644)
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for follow, want := range map[bool]string{true: "n/ n/f ", false: "n "} {
		var archive bytes.Buffer
		if _, err := pack(&archive, filepath.Join(dir, "link"), "n", follow, true); err != nil {
			t.Fatal(err)
		}
		names := ""
		reader := tar.NewReader(&archive)
		for header, err := reader.Next(); err == nil; header, err = reader.Next() {
			names += header.Name + " "
		}
		if names != want {
			t.Errorf("follow %v: %q, want %q", follow, names, want)
		}
	}
}

func archiveOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		body := []byte("evil")
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		}
		h.Mode = 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Nothing a container sends is written outside of the target's folder.
func TestUnpackStaysInside(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"dots":           {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/../../outside/f", Typeflag: tar.TypeReg}},
		"absolute":       {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "/outside/f", Typeflag: tar.TypeReg}},
		"other name":     {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "dd/f", Typeflag: tar.TypeReg}},
		"through a link": {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../../outside"}, {Name: "d/l/f", Typeflag: tar.TypeReg}},
		"link at top":    {{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "d/f", Typeflag: tar.TypeReg}},
		"hard link":      {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/h", Typeflag: tar.TypeLink, Linkname: "../../outside/secret"}},
		"chmod by link":  {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../../outside/secret"}, {Name: "d/l", Typeflag: tar.TypeDir}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write1(t, filepath.Join(dir, "outside/secret"), "mine", 0o600)
			before := tree(t, filepath.Join(dir, "outside"))
			if err := os.Mkdir(filepath.Join(dir, "inside"), 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := unpack(bytes.NewReader(archiveOf(t, headers...)), filepath.Join(dir, "inside", "d"), false)
			if err == nil {
				t.Error("it was taken")
			}
			if after := tree(t, filepath.Join(dir, "outside")); !slices.Equal(before, after) {
				t.Errorf("outside changed: %v", after)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archiveOf(&testing.T{}, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg}))
	f.Add(archiveOf(&testing.T{}, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		dir := t.TempDir()
		inside := filepath.Join(dir, "inside")
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = unpack(bytes.NewReader(archive), filepath.Join(inside, "target"), false)
		for place, want := range map[string]string{dir: "inside", inside: "target"} {
			entries, err := os.ReadDir(place)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if entry.Name() != want {
					t.Fatalf("wrote %s", filepath.Join(place, entry.Name()))
				}
			}
		}
	})
}

func TestTargets(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write1(t, "folder/f", "", 0o644)
	write1(t, "file", "", 0o644)
	for _, c := range []struct {
		from, to string
		isDir    bool
		want     string // empty: refused
	}{
		{"c:/etc/hosts", "folder", false, "folder/hosts"},
		{"c:/etc/hosts", "folder/", false, "folder/hosts"},
		{"c:/etc/hosts", "new", false, "new"},
		{"c:/etc/hosts", "new/", false, ""},
		{"c:/etc/hosts", "no/new", false, ""},
		{"c:/etc/hosts", "file", false, "file"},
		{"c:/etc/hosts", "file/", false, ""},
		{"c:/etc", "folder", true, "folder/etc"},
		{"c:/etc/.", "folder", true, "folder"},
		{"c:/etc/.", "new", true, "new"},
		{"c:/etc", "new/", true, "new"},
		{"c:/etc", "file", true, ""},
		{"c:/etc", ".", true, "etc"},
	} {
		from, _ := parsePlace(c.from)
		to, _ := parsePlace(c.to)
		got, err := localTarget(from, to, c.isDir)
		if (err == nil) != (c.want != "") || err == nil && got != c.want {
			t.Errorf("%s to %s: %q %v, want %q", c.from, c.to, got, err, c.want)
		}
	}
	for _, c := range []struct {
		from, to                   string
		isDir, intoFolder, missing bool
		folder, name               string // empty: refused
	}{
		{"folder", "c:/srv", true, true, false, "/srv", "folder"},
		{"folder/.", "c:/srv", true, true, false, "/srv", "."},
		{"folder", "c:/srv/new", true, false, true, "/srv", "new"},
		{"folder", "c:/srv/file", true, false, false, "", ""},
		{"file", "c:/srv", false, true, false, "/srv", "file"},
		{"file", "c:/srv/new", false, false, true, "/srv", "new"},
		{"file", "c:/srv/new/", false, false, true, "", ""},
		{"file", "c:/srv/old", false, false, false, "/srv", "old"},
		{".", "c:/srv", true, true, false, "/srv", "."},
	} {
		from, _ := parsePlace(c.from)
		to, _ := parsePlace(c.to)
		folder, name, err := containerTarget(from, to, c.isDir, c.intoFolder, c.missing)
		if (err == nil) != (c.folder != "") || err == nil && (folder != c.folder || name != c.name) {
			t.Errorf("%s to %s: %q %q %v", c.from, c.to, folder, name, err)
		}
	}
}
