package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"berth/spec"
)

func TestOnDisk(t *testing.T) {
	root := t.TempDir()
	write := func(name string, size int) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := func(string) bool { return true }
	count := func(wanted func(string) bool) int64 {
		t.Helper()
		b := blocks{root: root, seen: map[inode]bool{}}
		size, err := b.below(t.Context(), wanted)
		if err != nil {
			t.Fatal(err)
		}
		return size
	}
	write("layers/a/file", 1<<20)
	write("db/records", 4096)
	before := count(all)
	if before < 1<<20+4096 {
		t.Errorf("counted %d", before)
	}
	// Another name of a file takes nothing, whichever folder it is in.
	if err := os.MkdirAll(filepath.Join(root, "objects"), 0o755); err != nil {
		t.Fatal(err)
	}
	folder := count(all) - before
	if err := os.Link(filepath.Join(root, "layers/a/file"), filepath.Join(root, "objects/file")); err != nil {
		t.Fatal(err)
	}
	if after := count(all); after != before+folder {
		t.Errorf("a second name takes %d bytes", after-before-folder)
	}
	if one := count(layered); one >= before || one < 1<<20 {
		t.Errorf("layers take %d of %d", one, before)
	}
	// A file that is hole takes no block of its own.
	if err := os.Truncate(filepath.Join(root, "db/records"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if other := count(func(name string) bool { return !layered(name) }); other > 1<<20 {
		t.Errorf("a hole takes %d bytes", other)
	}
}

func TestDamageWarning(t *testing.T) {
	for want, damage := range map[string][]spec.Damage{
		"damaged parts: 1; berth system scrub says more, and repairs what can be":                               {{}},
		"damaged parts: 2, in a, b; berth system scrub says more, and repairs what can be":                      {{Images: []string{"b"}}, {Images: []string{"a", "b"}}},
		"damaged parts: 1, in a, b, c and 1 more images; berth system scrub says more, and repairs what can be": {{Images: []string{"a", "b", "c", "d"}}},
	} {
		if got := damageWarning(damage); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
