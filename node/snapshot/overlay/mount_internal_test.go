package overlay

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/base/kv"
	"berth/node/snapshot"
)

// TestMountByOptions: kernels that lack the newer interface mount long chains
// too, from long folders, by options that fit in a page.
func TestMountByOptions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-name/", 20))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := kv.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Dir: dir, DB: db, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const depth = 300
	var parent snapshot.Key
	for i := range depth {
		in, err := s.Ingest(t.Context(), bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		name := snapshot.Key(fmt.Sprint("layer", i))
		if _, err := in.Commit(t.Context(), name, parent, nil); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	if _, err := s.Prepare(t.Context(), "work", parent, map[string]string{snapshot.Volatile: "1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(t.Context(), "view", parent, nil); err != nil {
		t.Fatal(err)
	}
	for _, key := range []snapshot.Key{"work", "view"} {
		st, err := s.stack(key)
		if err != nil {
			t.Fatal(err)
		}
		target := t.TempDir()
		if err := s.mountByOptions(st, target); err != nil {
			t.Fatal(err)
		}
		err = os.WriteFile(filepath.Join(target, "f"), nil, 0o644)
		if (err == nil) != (key == "work") {
			t.Errorf("write into %s: %v", key, err)
		}
		if err := s.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
