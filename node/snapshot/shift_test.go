package snapshot_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

// Owners are shifted in what is mounted, shifted back on disk, and nothing is
// seen of how that was done.
func TestShifted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	for _, name := range []string{"layers/one", "layers/upper", "layers/work", "target"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "layers/one/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	maps := []snapshot.IDMap{{Host: 100_000, Size: 65_536}}
	var users snapshot.UserNamespaces
	defer users.Close()
	ns, err := users.Get(maps, maps)
	if err != nil {
		t.Fatal(err)
	}
	table := func() string {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	target := filepath.Join(dir, "target")
	shifted := snapshot.Shifted{
		Dir: dir, Trees: []string{"layers"}, Users: ns, UIDs: maps, GIDs: maps,
		Options: "lowerdir=layers/one,upperdir=layers/upper,workdir=layers/work",
	}
	if err := shifted.Mount(target); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(target, unix.MNT_DETACH) }()
	if n := strings.Count(table(), " "+dir); n != 1 {
		t.Errorf("%d mounts are seen, want 1", n)
	}
	owner := func(path string) uint32 {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, path), &st); err != nil {
			t.Fatal(err)
		}
		return st.Uid
	}
	if got := owner("target/file"); got != 100_000 {
		t.Errorf("a file belongs to %d", got)
	}
	touch := exec.CommandContext(t.Context(), "touch", filepath.Join(target, "new"))
	touch.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 100_000, Gid: 100_000}}
	if out, err := touch.CombinedOutput(); err != nil {
		t.Errorf("touch as the container's root: %v: %s", err, out)
	} else if got := owner("layers/upper/new"); got != 0 {
		t.Errorf("on disk it belongs to %d", got)
	}

	for what, wrong := range map[string]func(*snapshot.Shifted){
		"no root":        func(s *snapshot.Shifted) { s.UIDs = []snapshot.IDMap{{Container: 1, Host: 100_000, Size: 1}} },
		"no such tree":   func(s *snapshot.Shifted) { s.Trees = []string{"none"} },
		"no such folder": func(s *snapshot.Shifted) { s.Dir = filepath.Join(dir, "none") },
		"no such layer":  func(s *snapshot.Shifted) { s.Options = "lowerdir=layers/none" },
		"too long":       func(s *snapshot.Shifted) { s.Options += strings.Repeat(",", os.Getpagesize()) },
	} {
		s := shifted
		wrong(&s)
		if err := s.Mount(target); err == nil {
			t.Errorf("%s: mounted", what)
		} else if what == "no root" && errs.KindOf(err) != errs.Unsupported {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := strings.Count(table(), " "+dir); n != 1 {
		t.Errorf("%d mounts are left, want 1", n)
	}
}
