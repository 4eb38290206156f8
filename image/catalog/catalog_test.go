package catalog_test

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/catalog"
)

func target(s string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(s), Size: 1}
}

func TestCatalog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := kv.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(db)
	if err != nil {
		t.Fatal(err)
	}
	set := func(r ...catalog.Record) {
		t.Helper()
		if err := c.Apply(t.Context(), catalog.Change{Set: r}); err != nil {
			t.Fatal(err)
		}
	}
	set(catalog.Record{Name: "b:1", Target: target("x"), Labels: map[string]string{"k": "v"}}, catalog.Record{Name: "a:1", Target: target("x")})
	first, err := c.Get("b:1")
	if err != nil || first.Created.IsZero() || first.Updated.IsZero() {
		t.Fatal(first, err)
	}
	first.Labels["k"] = "changed"
	if names := c.NamesOf(target("x").Digest); !slices.Equal(names, []string{"a:1", "b:1"}) {
		t.Error(names)
	}
	set(catalog.Record{Name: "b:1", Target: target("x")})
	if same, _ := c.Get("b:1"); !same.Updated.Equal(first.Updated) {
		t.Error("nothing changed, but Updated did")
	}
	set(catalog.Record{Name: "b:1", Target: target("y"), Labels: map[string]string{"k": "v"}})
	moved, _ := c.Get("b:1")
	if !moved.Created.Equal(first.Created) || !moved.Updated.After(first.Updated) {
		t.Error("times of a moved name:", moved)
	}

	broken := errors.New("broken")
	err = c.Apply(t.Context(), catalog.Change{Delete: []string{"a:1"}, Set: []catalog.Record{{Name: "c:1", Target: target("z")}}, Also: func(*kv.Tx) error { return broken }})
	if !errors.Is(err, broken) || len(c.List()) != 2 {
		t.Error("a change that failed:", err, c.List())
	}
	err = c.Apply(t.Context(), catalog.Change{Delete: []string{"a:1", "never"}, Also: func(tx *kv.Tx) error { return tx.Put("other", "k", []byte("v")) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get("a:1"); !errors.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if err := c.Apply(t.Context(), catalog.Change{Set: []catalog.Record{{Name: "d"}}}); !errors.Is(err, errs.Invalid) {
		t.Error("no target:", err)
	}

	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = kv.Open(path); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if c, err = catalog.Open(db); err != nil {
		t.Fatal(err)
	}
	all := c.List()
	if len(all) != 1 || all[0].Name != "b:1" || all[0].Target.Digest != target("y").Digest || all[0].Labels["k"] != "v" {
		t.Error("after opening again:", all)
	}
}

func TestNamespaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := kv.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	own, err := catalog.Open(db)
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range []*catalog.Catalog{own, own.In("moby"), own.In("moby.b"), own.In("k8s.io")} {
		name := "a/b:" + string(rune('0'+n))
		for _, r := range []catalog.Record{{Name: "same", Target: target(name)}, {Name: name, Target: target(name)}} {
			if err := c.Apply(t.Context(), catalog.Change{Set: []catalog.Record{r}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := own.In("moby").In("k8s.io").Apply(t.Context(), catalog.Change{Delete: []string{"same", "a/b:3"}}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = kv.Open(path); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if own, err = catalog.Open(db); err != nil {
		t.Fatal(err)
	}
	if got := own.Namespaces(); !slices.Equal(got, []string{"moby", "moby.b"}) {
		t.Error(got)
	}
	for n, c := range []*catalog.Catalog{own, own.In("moby"), own.In("moby.b")} {
		want := "a/b:" + string(rune('0'+n))
		r, err := c.Get("same")
		if err != nil || r.Target.Digest != target(want).Digest || c.Len() != 2 {
			t.Error(n, r, err, c.List())
		}
	}
	if n := own.In("k8s.io").Len(); n != 0 {
		t.Error("deleted names are there:", n)
	}
}

// Names of old keep the ID of their image among their labels.
func TestOldRecord(t *testing.T) {
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(t.Context(), func(tx *kv.Tx) error {
		return kv.PutJSON(tx, "image", "a:1", catalog.Record{Name: "a:1", Target: target("a"), Labels: map[string]string{"berth.image": "sha256:1"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(db)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Get("a:1"); err != nil || r.Image != "sha256:1" || len(r.Labels) != 0 {
		t.Error(r, err)
	}
}
