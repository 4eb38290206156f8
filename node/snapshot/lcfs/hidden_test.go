package lcfs_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/node/snapshot"
)

// A tar that has a path twice is written again as it was, whatever was swept
// meanwhile; what only it needs is scrubbed and healed, and goes with the layer.
func TestHidden(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	text := func(c string) string { return strings.Repeat(c, 5000) }
	packed, err := io.ReadAll(packInOrder(t, "twice="+text("1"), "twice="+text("2"), "dir/", "dir/in="+text("3"), "dir="+text("4")))
	must(t, err)
	diffID := snapshot.Key("layer")
	in, err := s.Ingest(t.Context(), bytes.NewReader(packed))
	must(t, err)
	_, err = in.Commit(t.Context(), diffID, "", nil)
	must(t, err)
	whole := func(when string) {
		t.Helper()
		var again bytes.Buffer
		if err := s.Tar(t.Context(), diffID, &again); err != nil || !bytes.Equal(again.Bytes(), packed) {
			t.Errorf("%s the tar has %d bytes of %d, %v", when, again.Len(), len(packed), err)
		}
	}
	layer(t, s, "other", "", map[string]string{"f": text("1"), "g": text("5")})
	must(t, s.Remove(t.Context(), "other"))
	scrub(t, s) // hands strays to the sweep
	eventually(t, "what nobody needs is gone", func() bool { return len(objects(t, dir)) == 4 })
	whole("after a sweep")
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(dir, "objects", "stray"), nil, 0o600))
	s = open(t, dir)
	whole("after a restart")
	must(t, os.Remove(filepath.Join(dir, "objects", "stray")))

	for _, path := range objects(t, dir) {
		if body, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(body), "3") {
			flip(t, path)
		}
	}
	_, damaged := scrub(t, s)
	if len(damaged) != 1 || !slices.Equal(damaged[0].Keys, []snapshot.Key{diffID}) {
		t.Fatalf("damaged are %+v", damaged)
	}
	must(t, s.Heal(t.Context(), diffID, bytes.NewReader(packed)))
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("after it was healed: %+v", damaged)
	}
	whole("after it was healed")
	if _, _, err := s.Recipe(t.Context(), diffID); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a recipe of more than the tree names: %v", err)
	}
	must(t, s.Remove(t.Context(), diffID))
	empty(t, dir)
	must(t, s.Close())
}

// Too many hidden bodies are not kept, nor is the recipe that needs them.
func TestManyHidden(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	const maxHidden = 512
	var entries []string
	for i := range maxHidden + 20 {
		entries = append(entries, "twice="+fmt.Sprintf("%05d", i)+strings.Repeat("x", 600))
	}
	ingest(t, s, "layer", "", entries...)
	if err := s.Tar(t.Context(), "layer", io.Discard); errs.KindOf(err) != errs.Unsupported {
		t.Errorf("its tar: %v", err)
	}
	eventually(t, "only what shows is there", func() bool { return len(objects(t, dir)) == 1 })
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("damaged are %+v", damaged)
	}
	// One that comes to nothing leaves nothing.
	in, err := s.Ingest(t.Context(), packInOrder(t, entries[:3]...))
	must(t, err)
	must(t, in.Abort(t.Context()))
	must(t, s.Remove(t.Context(), "layer"))
	empty(t, dir)
	must(t, s.Close())
}
