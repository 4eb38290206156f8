package pod_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/spec"
)

// entries reads an archive.
func entries(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	all := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		check(t, err)
		body, err := io.ReadAll(r)
		check(t, err)
		all[h.Name] = string(body)
	}
}

func TestCheckpoint(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	c := containerConfig("app")
	id := create(t, s, run(t, s, podConfig("web")), c)
	dir := t.TempDir()
	path := filepath.Join(dir, "app.tar")
	wantKind(t, s.Checkpoint(t.Context(), "nobody", path), errs.NotFound)
	wantKind(t, s.Checkpoint(t.Context(), id, path), errs.Conflict) // it does not run yet
	check(t, s.StartContainer(t.Context(), id), s.Checkpoint(t.Context(), id, path))
	if is := state(t, s, id); is.State != spec.Running {
		t.Errorf("it is %s", is.State)
	}
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", info.Mode())
	}
	all := entries(t, path)
	if all["checkpoint/pages.img"] == "" || all["rootfs-diff.tar"] != "changes of "+id || !strings.Contains(all["spec.dump"], `"ociVersion"`) {
		t.Errorf("archive %q", all)
	}
	var config map[string]any
	check(t, json.Unmarshal([]byte(all["config.dump"]), &config))
	if config["id"] != id || config["name"] != "app" || config["rootfsImageRef"] == "" {
		t.Errorf("config.dump %v", config)
	}

	// Whatever fails, there is no half of an archive, and it can be done again.
	for _, step := range []string{"checkpoint", "diff"} {
		w.setCue(func(_ int, name string, after bool) error {
			if name == step && !after {
				return errs.New(errs.Unsupported, "criu does not work here")
			}
			return nil
		})
		wantKind(t, s.Checkpoint(t.Context(), id, filepath.Join(dir, "second.tar")), errs.Unsupported)
		w.setCue(nil)
	}
	left, err := os.ReadDir(dir)
	check(t, err)
	if names := slices.Collect(func(yield func(string) bool) {
		for _, e := range left {
			if !yield(e.Name()) {
				return
			}
		}
	}); !slices.Equal(names, []string{"app.tar"}) {
		t.Errorf("left: %v", names)
	}
	check(t, s.Checkpoint(t.Context(), id, path)) // over the old one
}
