package pod_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// isPinned wants a path that is this process's PID namespace by something else
// than the number of a process, which may be another's tomorrow.
func isPinned(t *testing.T, path string) {
	t.Helper()
	var pinned, own unix.Stat_t
	if err := errors.Join(unix.Stat(path, &pinned), unix.Stat("/proc/self/ns/pid", &own)); err != nil {
		t.Fatal(err)
	}
	if pinned.Ino != own.Ino || strings.HasPrefix(path, "/proc/") {
		t.Errorf("PID namespace %s: inode %d, want %d", path, pinned.Ino, own.Ino)
	}
}

func TestATargetsNamespaceIsPinned(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	target := create(t, s, id, containerConfig("app"))
	look := containerConfig("debug")
	look.Security.Namespaces.PID, look.Security.Namespaces.Target = spec.NamespaceTarget, target
	_, err := s.CreateContainer(t.Context(), id, look)
	wantKind(t, err, errs.Conflict) // it does not run
	check(t, s.StartContainer(t.Context(), target))
	debug := create(t, s, id, look)
	oci, err := s.ContainerSpec(t.Context(), debug)
	check(t, err)
	at := slices.IndexFunc(oci.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	path := oci.Linux.Namespaces[at].Path
	check(t, s.StopContainer(t.Context(), target, 0))
	isPinned(t, path) // whatever became of the process
	check(t, s.RemoveContainer(t.Context(), debug))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is left:", err)
	}
}

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

// A pod goes though there is no room to say so; one that has only stopped is
// written down as soon as there is.
func TestPodsGoWithoutRoom(t *testing.T) {
	w := newWorld(t)
	state := filepath.Join(w.dir, "state")
	check(t, os.Mkdir(state, 0o711))
	check(t, unix.Mount("state", state, "tmpfs", 0, "size=256k,mode=711"))
	s := w.node()
	going, stopping := run(t, s, podConfig("going")), run(t, s, podConfig("stopping"))
	for _, id := range []string{going, stopping} {
		check(t, s.StartContainer(t.Context(), create(t, s, id, containerConfig("app"))))
	}
	filler := filepath.Join(state, "filler")
	check(t, os.WriteFile(filler, nil, 0o600))
	for err := error(nil); err == nil; {
		err = appendTo(filler, make([]byte, 4096))
	}
	check(t, s.StopPod(t.Context(), stopping))
	check(t, s.RemovePod(t.Context(), going))
	if pods := s.Pods(); len(pods) != 1 || pods[0].ID != stopping {
		t.Errorf("pods %+v", pods)
	}
	check(t, appendTo(filler, make([]byte, 4096))) // what the other has left
	check(t, os.Remove(filler))
	w.sweep(s, func() error {
		if record, err := os.ReadFile(filepath.Join(state, "pods", stopping, "pod.json")); err != nil || !strings.Contains(string(record), `"phase":"stopped"`) {
			return fmt.Errorf("%s, %w", record, err)
		}
		return nil
	})
}

func appendTo(file string, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
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

// Sysctls of a pod that has no namespaces of its own would be the machine's:
// they are not passed over in silence.
func TestSysctlsOfTheMachineAreRefused(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	config := podConfig("web")
	config.Security.Namespaces.Network, config.Security.Namespaces.IPC = spec.NamespaceNode, spec.NamespaceNode
	id := run(t, s, config)
	if _, asked := w.namespaces[id]; asked {
		t.Error("there are none to be made")
	}
	config.Name, config.Sysctls = "other", map[string]string{"kernel.shm_rmid_forced": "1"}
	id = run(t, s, config)
	if _, asked := w.namespaces[id]; !asked { // who refuses them
		t.Error("nobody is asked about its sysctls")
	}
}

func TestLogsStayInTheirFolder(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	config := podConfig("web")
	config.LogDir = filepath.Join(w.dir, "logs")
	id := run(t, s, config)
	for _, path := range []string{"../x.log", "/../x.log", "a/../../x.log", "/../../../../etc/x"} {
		c := containerConfig("c")
		c.LogPath = path
		_, err := s.CreateContainer(t.Context(), id, c)
		wantKind(t, err, errs.Invalid)
	}
	c := containerConfig("c")
	c.LogPath = "/c/0.log" // as some clients write it
	member, err := s.Container(create(t, s, id, c))
	check(t, err)
	if want := filepath.Join(config.LogDir, "c/0.log"); member.LogPath != want {
		t.Errorf("%s, want %s", member.LogPath, want)
	}
}
