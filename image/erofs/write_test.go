package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/erofs"
	"berth/image/tree"
	"berth/image/tree/treetest"
)

func image(tb testing.TB, root *tree.Node) []byte {
	tb.Helper()
	var out bytes.Buffer
	size, err := erofs.Write(&out, root)
	if err != nil {
		tb.Fatal(err)
	}
	if size != int64(out.Len()) || size%4096 != 0 {
		tb.Fatalf("%d bytes are written, and said to be %d", out.Len(), size)
	}
	return out.Bytes()
}

func opened(tb testing.TB, root *tree.Node) *erofs.Image {
	tb.Helper()
	b := image(tb, root)
	img, err := erofs.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		tb.Fatal(err)
	}
	return img
}

// TestRoundTrip: what is written comes back.
func TestRoundTrip(t *testing.T) {
	same := func(name string, root *tree.Node) {
		img := opened(t, root)
		got, err := img.Tree()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := treetest.Equal(root, got); diff != "" {
			t.Fatalf("%s: %s", name, diff)
		}
	}
	same("nothing", tree.NewFolder())
	same("limits", limits())
	for seed := range uint64(60) {
		same(fmt.Sprint("layer ", seed), treetest.Layer(seed, 1+int(seed)*3).Root)
		same(fmt.Sprint("merged ", seed), treetest.Merged(seed, 1+int(seed)*3).Root)
	}
}

// TestDeterministic: only what is in a tree counts, not how it came there.
func TestDeterministic(t *testing.T) {
	for seed := range uint64(20) {
		root := treetest.Layer(seed, 150).Root
		first := image(t, root)
		if !bytes.Equal(first, image(t, shuffled(rand.New(rand.NewPCG(seed, 7)), root))) {
			t.Errorf("seed %d: another order of names makes another image", seed)
		}
		again, err := opened(t, root).Tree()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, image(t, again)) {
			t.Errorf("seed %d: a tree from an image makes another image", seed)
		}
	}
}

// shuffled copies a tree, putting names and xattrs in no order.
func shuffled(r *rand.Rand, root *tree.Node) *tree.Node {
	links := map[*tree.Node]*tree.Node{}
	var copyOf func(n *tree.Node) *tree.Node
	copyOf = func(n *tree.Node) *tree.Node {
		if links[n] != nil {
			return links[n]
		}
		made := *n
		made.Xattrs = append([]tree.Xattr(nil), n.Xattrs...)
		r.Shuffle(len(made.Xattrs), func(i, j int) { made.Xattrs[i], made.Xattrs[j] = made.Xattrs[j], made.Xattrs[i] })
		made.SetEntries(nil)
		links[n] = &made
		entries := append([]tree.Entry(nil), n.Entries()...)
		r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
		for _, e := range entries {
			made.Set(e.Name, copyOf(e.Node))
		}
		return &made
	}
	return copyOf(root)
}

// TestGolden: images are named by their digest, and nodes compare them, so the
// bytes never change by accident.
func TestGolden(t *testing.T) {
	for name, test := range map[string]struct {
		root *tree.Node
		want string
	}{
		"limits": {limits(), "2a618c33c5f63fd8ecd7775b647cf48433f3dce10ba38723cc34f0c18f4e74be"},
		"layer":  {treetest.Layer(1, 300).Root, "faf2ddf01b014e591dfb6902320a64a185f591a1d84a1aac68584e592742eb6d"},
	} {
		if got := fmt.Sprintf("%x", sha256.Sum256(image(t, test.root))); got != test.want {
			t.Errorf("%s: digest %s, want %s", name, got, test.want)
		}
	}
}

// TestFsck: the checker of erofs-utils finds nothing wrong.
func TestFsck(t *testing.T) {
	tool := ""
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + ":/usr/bin:/usr/sbin") {
		if st, err := os.Stat(filepath.Join(dir, "fsck.erofs")); err == nil && st.Mode().IsRegular() {
			tool = filepath.Join(dir, "fsck.erofs")
		}
	}
	if tool == "" {
		t.Skip("fsck.erofs is not installed (erofs-utils)")
	}
	trees := map[string]*tree.Node{"limits": limits(), "empty": tree.NewFolder()}
	trees["limits"].Delete("huge") // it sums up what its holes would take
	for seed := range uint64(10) {
		trees[fmt.Sprint("layer", seed)] = treetest.Layer(seed, 200).Root
	}
	for name, root := range trees {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, image(t, root), 0o600); err != nil {
			t.Fatal(err)
		}
		if said := run(t, tool, path); said != "" {
			t.Errorf("%s: %s", name, said)
		}
	}
}

// run runs a tool and returns what it said, if it failed.
func run(t *testing.T, tool string, args ...string) string {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p, err := os.StartProcess(tool, append([]string{tool}, args...), &os.ProcAttr{Files: []*os.File{nil, out, out}})
	if err != nil {
		t.Fatal(err)
	}
	state, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if state.Success() {
		return ""
	}
	said, _ := os.ReadFile(out.Name())
	return state.String() + ": " + string(said)
}

// TestWriteRefuses: what no image can hold is an error, and says which.
func TestWriteRefuses(t *testing.T) {
	one := func(name string, n *tree.Node) *tree.Node {
		root := tree.NewFolder()
		root.Set(name, n)
		return root
	}
	regular := func(change func(n *tree.Node)) *tree.Node {
		n := &tree.Node{Mode: unix.S_IFREG | 0o644}
		change(n)
		return one("f", n)
	}
	xattr := func(name, value string) *tree.Node {
		return regular(func(n *tree.Node) { n.Xattrs = []tree.Xattr{{Name: name, Value: []byte(value)}} })
	}
	loop := tree.NewFolder()
	loop.Set("loop", loop)
	twice := tree.NewFolder()
	both := one("a", twice)
	both.Set("b", twice)
	deep := tree.NewFolder()
	for range 3000 {
		deep = one("d", deep)
	}
	many := regular(func(n *tree.Node) {
		for i := range 5 {
			n.Xattrs = append(n.Xattrs, tree.Xattr{Name: fmt.Sprint("user.", i), Value: make([]byte, 65_000)})
		}
	})
	for name, test := range map[string]struct {
		root *tree.Node
		kind errs.Kind
	}{
		"root that is a file":      {&tree.Node{Mode: unix.S_IFREG}, errs.Invalid},
		"no name":                  {one("", tree.NewFolder()), errs.Invalid},
		"dot":                      {one(".", tree.NewFolder()), errs.Invalid},
		"two dots":                 {one("..", tree.NewFolder()), errs.Invalid},
		"slash":                    {one("a/b", tree.NewFolder()), errs.Invalid},
		"zero byte":                {one("a\x00", tree.NewFolder()), errs.Invalid},
		"long name":                {one(strings.Repeat("x", 256), tree.NewFolder()), errs.Invalid},
		"folder in itself":         {loop, errs.Invalid},
		"folder with two names":    {both, errs.Invalid},
		"deep":                     {deep, errs.Unsupported},
		"no type":                  {one("x", &tree.Node{Mode: 0o644}), errs.Invalid},
		"large mode":               {regular(func(n *tree.Node) { n.Mode |= 1 << 20 }), errs.Invalid},
		"nanoseconds":              {regular(func(n *tree.Node) { n.Nsec = 1e9 }), errs.Invalid},
		"negative size":            {regular(func(n *tree.Node) { n.Size = -1 }), errs.Invalid},
		"body of another size":     {regular(func(n *tree.Node) { n.Size, n.Body = 2, []byte("x") }), errs.Invalid},
		"body twice":               {regular(func(n *tree.Node) { n.Size, n.Body, n.Object = 1, []byte("x"), tree.Digest{1} }), errs.Invalid},
		"opaque file":              {regular(func(n *tree.Node) { n.Opaque = true }), errs.Invalid},
		"link to nothing":          {one("l", &tree.Node{Mode: unix.S_IFLNK}), errs.Invalid},
		"long link":                {one("l", &tree.Node{Mode: unix.S_IFLNK, Target: strings.Repeat("x", 4096)}), errs.Invalid},
		"link with zero byte":      {one("l", &tree.Node{Mode: unix.S_IFLNK, Target: "a\x00"}), errs.Invalid},
		"link with body":           {one("l", &tree.Node{Mode: unix.S_IFLNK, Target: "a", Body: []byte("x")}), errs.Invalid},
		"large device":             {one("d", &tree.Node{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(4096, 1)}), errs.Invalid},
		"xattr without name":       {xattr("", "x"), errs.Invalid},
		"xattr with zero byte":     {xattr("user.\x00", "x"), errs.Invalid},
		"xattr with long name":     {xattr("user."+strings.Repeat("x", 251), "x"), errs.Invalid},
		"xattr too long escaped":   {xattr("trusted.overlay."+strings.Repeat("x", 232), "x"), errs.Invalid},
		"xattr of 64 KiB":          {xattr("user.x", strings.Repeat("x", 65536)), errs.Unsupported},
		"many xattrs":              {many, errs.Unsupported},
		"xattr twice":              {regular(func(n *tree.Node) { n.Xattrs = []tree.Xattr{{Name: "user.a"}, {Name: "user.a"}} }), errs.Invalid},
		"ACL that is none":         {xattr("system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x00"), errs.Invalid},
		"ACL of another version":   {xattr("system.posix_acl_access", "\x01\x00\x00\x00"+string(treetest.ACL(0o644, 1)[4:])), errs.Invalid},
		"ACL with an unknown part": {xattr("system.posix_acl_access", "\x02\x00\x00\x00\x40\x00\x07\x00\xff\xff\xff\xff"), errs.Invalid},
	} {
		if _, err := erofs.Write(io.Discard, test.root); errs.KindOf(err) != test.kind {
			t.Errorf("%s: %v, want an error of kind %s", name, err, test.kind)
		}
	}
}

type full struct{ left int }

func (f *full) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(b), nil
}

func TestWriteToFullDisk(t *testing.T) {
	root := limits()
	for _, room := range []int{0, 300_000, 5 << 20} {
		if _, err := erofs.Write(&full{room}, root); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
	}
}

// TestWriteStreams: large bodies do not go through memory.
func TestWriteStreams(t *testing.T) {
	root, body := tree.NewFolder(), make([]byte, 8<<20)
	for i := range 8 {
		root.Set(fmt.Sprint(i), &tree.Node{Mode: unix.S_IFREG, Size: int64(len(body)), Body: body})
	}
	root.Set("huge", &tree.Node{Mode: unix.S_IFREG, Size: math.MaxInt64, Object: tree.Digest{1}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	size, err := erofs.Write(io.Discard, root)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; err != nil || size < 64<<20 || used > 2<<20 {
		t.Errorf("an image of %d bytes took %d bytes of memory, %v", size, used, err)
	}
}
