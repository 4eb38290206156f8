package snapshottest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/snapshot"
)

func newTarReader(archived []byte) *tar.Reader { return tar.NewReader(bytes.NewReader(archived)) }

// places are where files come to be: few, so that they meet.
var places = []string{"a", "b", "c", "a/x", "a/y", "b/x", "b/z", "a/x/deep", "c/x"}

// now is a time that nothing else has.
func (h *history) now() time.Time {
	h.count++
	return moment.Add(time.Duration(h.count) * (time.Second + time.Nanosecond))
}

func (h *history) body() string {
	h.count++
	text := fmt.Sprintf("body %d ", h.count)
	if h.random.IntN(8) == 0 {
		return strings.Repeat(text, 20_000)
	}
	return text
}

// randomLayer makes a layer for parent: folders, files in them, and whiteouts
// of what parent has. Everything in it is new in something.
func (h *history) randomLayer(parent snapshot.Key) []entry {
	var entries []entry
	taken := map[string]bool{}
	for _, dirName := range places {
		if h.random.IntN(3) != 0 || taken[dirName] || h.underFile(taken, dirName) {
			continue
		}
		for at := dirName; at != "."; at = path.Dir(at) {
			taken[at] = false // a folder
		}
		if h.random.IntN(4) != 0 { // else it is only implied
			d := dir(dirName).mode([]int64{0o755, 0o700, 0o1777}[h.random.IntN(3)]).owner(h.random.IntN(3), h.random.IntN(3))
			d.ModTime = h.now()
			entries = append(entries, d)
			if h.random.IntN(4) == 0 {
				entries = append(entries, file(dirName+"/.wh..wh..opq", ""))
			}
		}
		for i := range 1 + h.random.IntN(3) {
			name := fmt.Sprintf("%s/f%d", dirName, i)
			entries = append(entries, h.randomEntry(name))
			taken[name] = true
		}
	}
	return append(entries, h.randomWhiteouts(parent, taken)...)
}

// underFile says whether the path leads through what is no folder.
func (h *history) underFile(taken map[string]bool, name string) bool {
	for at := name; at != "."; at = path.Dir(at) {
		if taken[at] {
			return true
		}
	}
	return false
}

func (h *history) randomEntry(name string) entry {
	var e entry
	switch h.random.IntN(8) {
	case 0:
		e = symlink(name, fmt.Sprintf("../to/%d", h.random.IntN(5)))
	case 1:
		e = entry{tar.Header{Name: name, Typeflag: tar.TypeFifo, Mode: 0o600}, ""}
	case 2:
		e = entry{tar.Header{Name: name, Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 1, Devminor: 3}, ""}
	default:
		e = file(name, h.body()).mode(0o600+h.random.Int64N(0o100)).owner(h.random.IntN(3), 0)
		if h.random.IntN(5) == 0 {
			e = e.xattr("user.layer", h.body()[:6])
		}
	}
	e.ModTime = h.now()
	return e
}

// randomWhiteouts deletes some of what parent has and the layer has not.
func (h *history) randomWhiteouts(parent snapshot.Key, taken map[string]bool) []entry {
	if parent == "" {
		return nil
	}
	var entries []entry
	gone := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(h.envs[0].look(parent))) {
		_, has := taken[name]
		if name == "." || has || h.random.IntN(6) != 0 || h.underFile(taken, name) || h.underFile(gone, name) {
			continue
		}
		if slices.ContainsFunc(slices.Collect(maps.Keys(taken)), func(t string) bool { return strings.HasPrefix(t, name+"/") }) {
			continue
		}
		gone[name] = true
		entries = append(entries, file(path.Join(path.Dir(name), ".wh."+path.Base(name)), ""))
	}
	return entries
}

// change does a few things to an Active snapshot, on both mounts.
func (h *history) change() {
	key := h.pick(snapshot.KindActive)
	if key == "" {
		return
	}
	h.note("change %s", key)
	h.mounted(key, func(roots []string) {
		for range 1 + h.random.IntN(6) {
			h.changeOnce(key, roots)
		}
	})
}

// found is a path in a mount that may be changed.
type found struct {
	name   string
	mode   uint32
	linked bool // it has several names
}

func (f found) is(kind uint32) bool { return f.mode&unix.S_IFMT == kind }

// list reads the model's mount.
func (h *history) list(root string) []found {
	var all []found
	err := filepath.WalkDir(root, func(at string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return err
		}
		name, err := filepath.Rel(root, at)
		all = append(all, found{name, st.Mode, st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR})
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
	return all
}

func (h *history) changeOnce(key snapshot.Key, roots []string) {
	all := h.list(roots[0])
	f := all[h.random.IntN(len(all))]
	folders := slices.DeleteFunc(slices.Clone(all), func(f found) bool { return !f.is(unix.S_IFDIR) })
	in := folders[h.random.IntN(len(folders))].name
	h.count++
	fresh := path.Join(in, fmt.Sprintf("n%d", h.count))
	own := h.own[key]
	free := !f.linked || own[f.name] // overlayfs would separate it from its other names
	switch what := h.random.IntN(12); {
	case what < 3:
		h.makeSomething(own, fresh, roots)
	case f.name == ".":
	case what == 3:
		h.do(roots, "remove "+f.name, []string{path.Dir(f.name)}, func(root string) error { return os.RemoveAll(filepath.Join(root, f.name)) })
		forget(own, f.name)
	case what == 4 && free && (!f.is(unix.S_IFDIR) || own[f.name] && !strings.HasPrefix(in+"/", f.name+"/")):
		h.do(roots, "rename "+f.name+" "+fresh, []string{path.Dir(f.name), in}, func(root string) error {
			return os.Rename(filepath.Join(root, f.name), filepath.Join(root, fresh))
		})
		move(own, f.name, fresh)
	case what == 5 && f.is(unix.S_IFREG) && free:
		h.do(roots, "link "+f.name+" "+fresh, []string{in}, func(root string) error {
			return os.Link(filepath.Join(root, f.name), filepath.Join(root, fresh))
		})
		own[fresh] = true
	case what == 6:
		h.replace(own, f, roots)
	case free && !f.is(unix.S_IFLNK):
		h.changeLooks(f, roots)
	}
}

func (h *history) makeSomething(own map[string]bool, fresh string, roots []string) {
	body := h.body()
	make := map[string]func(at string) error{
		"file":    func(at string) error { return os.WriteFile(at, []byte(body), 0o640) },
		"folder":  func(at string) error { return os.Mkdir(at, 0o751) },
		"symlink": func(at string) error { return os.Symlink(body[:6], at) },
		"fifo":    func(at string) error { return unix.Mkfifo(at, 0o620) },
		"device":  func(at string) error { return unix.Mknod(at, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 9))) },
	}
	kind := []string{"file", "file", "file", "folder", "folder", "symlink", "fifo", "device"}[h.random.IntN(8)]
	h.do(roots, "make "+kind+" "+fresh, []string{fresh, path.Dir(fresh)}, func(root string) error { return make[kind](filepath.Join(root, fresh)) })
	own[fresh] = true
}

// replace puts something else in the place of f: of a folder a new folder or a
// file, of a file a folder.
func (h *history) replace(own map[string]bool, f found, roots []string) {
	body, file := h.body(), f.is(unix.S_IFDIR) && h.random.IntN(2) == 0
	h.do(roots, fmt.Sprintf("replace %s by a file: %v", f.name, file), []string{f.name + "/in", f.name, path.Dir(f.name)}, func(root string) error {
		at := filepath.Join(root, f.name)
		if err := os.RemoveAll(at); err != nil {
			return err
		}
		if file {
			return os.WriteFile(at, []byte(body), 0o604)
		}
		return errors.Join(os.Mkdir(at, 0o705), os.WriteFile(at+"/in", []byte(body), 0o604))
	})
	forget(own, f.name)
	own[f.name], own[f.name+"/in"] = true, !file
}

func (h *history) changeLooks(f found, roots []string) {
	body := h.body()
	n := h.count
	change := map[string]func(at string) error{
		"chmod": func(at string) error { return os.Chmod(at, os.FileMode(f.mode&0o777^0o22)) },
		"chown": func(at string) error { return os.Lchown(at, n, n+1) },
		"touch": func(string) error { return nil },
		"xattr": func(at string) error { return unix.Lsetxattr(at, "user.history", []byte(body[:6]), 0) },
		"write": func(at string) error { return os.WriteFile(at, []byte(body), 0) },
		"append": func(at string) error {
			out, err := os.OpenFile(at, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = out.WriteString(body)
			return errors.Join(err, out.Close())
		},
	}
	kinds := []string{"chmod", "chown", "touch"}
	if f.is(unix.S_IFDIR) || f.is(unix.S_IFREG) {
		kinds = append(kinds, "xattr")
	}
	if f.is(unix.S_IFREG) {
		kinds = append(kinds, "write", "append", "write", "append")
	}
	kind := kinds[h.random.IntN(len(kinds))]
	h.do(roots, kind+" "+f.name, []string{f.name}, func(root string) error { return change[kind](filepath.Join(root, f.name)) })
}

// do does the same under both roots. What it touched has the same times then.
func (h *history) do(roots []string, what string, touched []string, change func(root string) error) {
	h.Helper()
	h.note("  %s", what)
	when := h.now()
	for _, root := range roots {
		if err := change(root); err != nil {
			h.Fatalf("%s: %v", what, err)
		}
		times := []unix.Timespec{unix.NsecToTimespec(when.UnixNano()), unix.NsecToTimespec(when.UnixNano())}
		for _, name := range touched {
			err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, name), times, unix.AT_SYMLINK_NOFOLLOW)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
				h.Fatalf("%s: times of %s: %v", what, name, err)
			}
		}
	}
}

func forget(own map[string]bool, name string) {
	maps.DeleteFunc(own, func(p string, _ bool) bool { return p == name || strings.HasPrefix(p, name+"/") })
}

func move(own map[string]bool, from, to string) {
	moved := map[string]bool{to: own[from]}
	for p := range own {
		if rest, in := strings.CutPrefix(p, from+"/"); in {
			moved[to+"/"+rest] = own[p]
		}
	}
	forget(own, from)
	maps.Copy(own, moved)
}
