package pod_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth/spec"
)

// What containers write to the files of their pod does not fill what all pods
// share.
func TestFilesOfAPodAreBounded(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id, err := s.RunPod(t.Context(), podConfig("web"))
	if err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(w.dir, "state/pods", id, "etc")
	err = os.WriteFile(filepath.Join(etc, "hosts"), make([]byte, 8<<20), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Error("8 MB in /etc/hosts:", err)
	}
	if err := s.StopPod(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(etc); err != nil || len(left) != 0 {
		t.Error("of a stopped pod:", left, err)
	}
}

// A user of the machine gets neither at /dev/shm of a pod nor at programs in its
// image volumes.
func TestOnlyRootGetsIntoPods(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	plain, mapped := podConfig("plain"), podConfig("mapped")
	ids := []spec.IDMapping{{Host: 100000, Length: 65536}}
	mapped.Security.Namespaces.User = &spec.PodUserNamespace{Mode: spec.NamespacePod, UIDs: ids, GIDs: ids}
	for want, config := range map[os.FileMode]spec.PodConfig{0o700: plain, 0o711: mapped} {
		id, err := s.RunPod(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(w.dir, "state/pods", id))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("pod %s: %s, want %s", config.Name, info.Mode(), want)
		}
	}
}
