package kernelns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

func open(t testing.TB, cfg Config) *Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces")
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(context.Background(), cfg)
	must(t, err)
	t.Cleanup(func() {
		must(t, s.Close())
		ids, err := s.List()
		must(t, err)
		for _, id := range ids {
			must(t, s.Remove(context.Background(), id))
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within runs fn in the namespaces at paths.
func within(t testing.TB, s *Set, paths Paths, fn func() error) {
	t.Helper()
	must(t, s.apart(func() error {
		for i, path := range []string{paths.Net, paths.IPC, paths.UTS} {
			if path != "" {
				if err := enter(path, kinds[i].flag); err != nil {
					return err
				}
			}
		}
		return fn()
	}))
}

func read(name string) string {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func expect(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s is %q, want %q", what, got, want)
	}
	return nil
}

var all = Want{Net: true, IPC: true, UTS: true}

func TestMake(t *testing.T) {
	s := open(t, Config{Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}})
	here, err := os.Hostname()
	must(t, err)
	want := all
	want.Hostname = "web"
	want.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.tcp_syncookies": "0", "net.ipv4.conf.eth0.arp_notify": "1", "net/core/somaxconn": "777"}
	paths, err := s.Make(t.Context(), "pod", want)
	must(t, err)
	within(t, s, paths, func() error {
		name, err := os.Hostname()
		return errors.Join(err,
			expect("host name", name, "web"),
			expect("shm_rmid_forced", read("kernel/shm_rmid_forced"), "1"),
			expect("tcp_syncookies", read("net/ipv4/tcp_syncookies"), "0"),
			expect("somaxconn", read("net/core/somaxconn"), "777"),
			expect("first port", read("net/ipv4/ip_unprivileged_port_start"), "0"),
			expect("flags of lo", fmt.Sprint(loIsUp()), "true"),
		)
	})
	if now, _ := os.Hostname(); now != here {
		t.Fatalf("the host is named %s now", now)
	}
	// The interface is not there, and then its sysctl cannot be set.
	if err := s.Finish(t.Context(), "pod", want.Sysctls); !errors.Is(err, errs.Invalid) {
		t.Errorf("sysctl of an interface that is not there: %v", err)
	}
	must(t, s.Finish(t.Context(), "pod", map[string]string{"kernel.shm_rmid_forced": "0"}))

	if _, err := s.Make(t.Context(), "pod", all); !errors.Is(err, errs.Exists) {
		t.Errorf("made twice: %v", err)
	}
	again, err := s.Paths("pod")
	must(t, err)
	if again != paths {
		t.Errorf("paths %v, made %v", again, paths)
	}
	must(t, s.Remove(t.Context(), "pod"))
	must(t, s.Remove(t.Context(), "pod"))
	if _, err := s.Paths("pod"); !errors.Is(err, errs.NotFound) {
		t.Errorf("paths of a pod that is gone: %v", err)
	}
	left, err := os.ReadDir(s.cfg.Dir)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func loIsUp() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	lo, _ := unix.NewIfreq("lo")
	return unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo) == nil && lo.Uint16()&unix.IFF_UP != 0
}

func TestSomeShared(t *testing.T) {
	s := open(t, Config{Ready: 1})
	must(t, s.prepare(t.Context()))
	paths, err := s.Make(t.Context(), "hostnet", Want{IPC: true})
	must(t, err)
	if paths.Net != "" || paths.UTS != "" || paths.IPC == "" {
		t.Errorf("paths: %+v", paths)
	}
	for name, want := range map[string]Want{
		"net.ipv4.tcp_syncookies": {IPC: true, UTS: true},
		"kernel.sem":              {Net: true},
		"kernel.pid_max":          all,
		"net/../kernel/pid_max":   all,
		"net..ipv4":               all,
		"vm.swappiness":           all,
		"net.ipv4.no_such":        all,
		"fs.mqueue.msg_max":       {UTS: true},
	} {
		want.Sysctls = map[string]string{name: "1"}
		if _, err := s.Make(t.Context(), "refused", want); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]Want{
		"host name of the host":  {Net: true, Hostname: "web"},
		"long host name":         {UTS: true, Hostname: strings.Repeat("x", 65)},
		"value out of range":     {Net: true, Sysctls: map[string]string{"net.ipv4.tcp_syncookies": "many"}},
		"maps of a user missing": {Net: true, Idmap: &Idmap{}},
	} {
		if _, err := s.Make(t.Context(), "refused", want); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ids, err := s.List()
	must(t, err)
	if len(ids) != 1 || ids[0] != "hostnet" {
		t.Errorf("pods: %v", ids)
	}
	if _, err := s.Make(t.Context(), "../x", all); !errors.Is(err, errs.Invalid) {
		t.Errorf("a name that climbs: %v", err)
	}
}

func TestOwned(t *testing.T) {
	s := open(t, Config{Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}})
	maps := []spec.IDMapping{{Container: 0, Host: 100000, Length: 65536}}
	want := all
	want.Idmap = &Idmap{maps, maps}
	want.Hostname, want.Sysctls = "mapped", map[string]string{"net.core.somaxconn": "55", "kernel.shm_rmid_forced": "1"}
	paths, err := s.Make(t.Context(), "pod", want)
	must(t, err)
	within(t, s, paths, func() error {
		name, err := os.Hostname()
		return errors.Join(err, expect("host name", name, "mapped"), expect("somaxconn", read("net/core/somaxconn"), "55"),
			expect("flags of lo", fmt.Sprint(loIsUp()), "true"), expect("first port", read("net/ipv4/ip_unprivileged_port_start"), "0"))
	})
	user := inode(t, paths.User)
	if user == inode(t, "/proc/self/ns/user") {
		t.Error("the user namespace is the host's")
	}
	for _, path := range []string{paths.Net, paths.IPC, paths.UTS} {
		ns, err := os.Open(path)
		must(t, err)
		owner, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Fstat(owner, &st))
		if st.Ino != user {
			t.Errorf("%s belongs to another user namespace", path)
		}
		must(t, errors.Join(ns.Close(), unix.Close(owner)))
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}

func TestReady(t *testing.T) {
	told, gone := make(chan string, 10), make(chan string, 10)
	s := open(t, Config{Ready: 2, Made: func(_ context.Context, net string) error { told <- net; return nil }, Gone: func(net string) { gone <- net }})
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- s.Run(ctx) }()
	if s.missing() {
		t.Error("something is made ready before there is a pod")
	}
	_, err := s.Make(t.Context(), "first", all)
	must(t, err)
	must(t, s.Remove(t.Context(), "first"))
	first := inode(t, <-told)
	<-told
	for s.missing() {
		<-time.After(time.Millisecond)
	}
	paths, err := s.Make(t.Context(), "a", all)
	must(t, err)
	if inode(t, paths.Net) != first {
		t.Error("the pod did not get what was ready")
	}
	<-told // another takes its place
	odd := all
	odd.Sysctls = map[string]string{"net.ipv4.conf.default.rp_filter": "0"}
	_, err = s.Make(t.Context(), "b", odd)
	must(t, err)
	if _, err := s.Make(t.Context(), "a", all); !errors.Is(err, errs.Exists) { // takes a ready set, in vain
		t.Error(err)
	}
	<-gone
	<-told
	for s.missing() {
		<-time.After(time.Millisecond)
	}
	stop()
	if err := <-ran; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(told) != 0 {
		t.Error("a pod that wants other defaults got a ready set")
	}

	// What a crash leaves ready is removed by the next start, pods are not.
	crashed := s.ready
	s.mu.Lock()
	s.ready = nil
	s.mu.Unlock()
	must(t, os.Mkdir(filepath.Join(s.cfg.Dir, ".new-half"), 0o700))
	next := open(t, Config{Dir: s.cfg.Dir})
	ids, err := next.List()
	must(t, err)
	if strings.Join(ids, " ") != "a b" {
		t.Errorf("pods: %v", ids)
	}
	left, err := os.ReadDir(s.cfg.Dir)
	must(t, err)
	if len(left) != 2 {
		t.Errorf("left: %v", left)
	}
	for _, dir := range crashed {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is there still", dir)
		}
	}
}

// Somebody unmounts what is kept ready: no pod gets the node's own namespaces in
// its place.
func TestReadyAreUnmounted(t *testing.T) {
	for _, file := range []string{"net", "ipc", "uts"} {
		t.Run(file, func(t *testing.T) {
			s := open(t, Config{Ready: 1, NetDir: filepath.Join(t.TempDir(), "netns")})
			t.Cleanup(func() { _ = unix.Unmount(s.cfg.NetDir, unix.MNT_DETACH) })
			must(t, s.prepare(t.Context()))
			path := filepath.Join(s.ready[0], file)
			if to, err := os.Readlink(path); err == nil {
				path = to
			}
			must(t, unix.Unmount(path, unix.MNT_DETACH))
			paths, err := s.Make(t.Context(), "pod", all)
			must(t, err)
			if paths.Net == "" || paths.IPC == "" || paths.UTS == "" {
				t.Errorf("the pod has %+v", paths)
			}
			if left := names(t, s.cfg.Dir); len(left) != 1 {
				t.Errorf("there are %v", left)
			}
		})
	}
}

func TestNetDir(t *testing.T) {
	dir, netDir := t.TempDir(), filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() { _ = unix.Unmount(netDir, unix.MNT_DETACH) })
	s := open(t, Config{Dir: dir, NetDir: netDir})
	maps := []spec.IDMapping{{Container: 0, Host: 100000, Length: 65536}}
	for id, want := range map[string]Want{"plain": all, "mapped": {Net: true, IPC: true, UTS: true, Hostname: "web", Idmap: &Idmap{maps, maps}}} {
		paths, err := s.Make(t.Context(), id, want)
		must(t, err)
		if filepath.Dir(paths.Net) != netDir || filepath.Dir(paths.IPC) != filepath.Join(dir, id) {
			t.Errorf("paths %+v", paths)
		}
		if !strings.HasPrefix(filepath.Base(paths.Net), "berth-") {
			t.Errorf("name %s", paths.Net)
		}
		within(t, s, paths, func() error { return expect("lo is up", fmt.Sprint(loIsUp()), "true") })
	}
	must(t, s.prepare(t.Context()))
	s.mu.Lock()
	s.ready = nil // as a crash does
	s.mu.Unlock()
	touch(t, filepath.Join(netDir, "cni-of-others"))
	touch(t, filepath.Join(netDir, s.prefix()+"halfmade"))
	s = open(t, Config{Dir: dir, NetDir: netDir})
	if left := names(t, netDir); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
	for _, id := range []string{"plain", "mapped", "mapped"} {
		must(t, s.Remove(t.Context(), id))
	}
	if left := names(t, netDir); strings.Join(left, " ") != "cni-of-others" {
		t.Errorf("left: %v", left)
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if n := strings.Count(string(mounts), " "+netDir+" "); n != 1 {
		t.Errorf("%s is mounted %d times", netDir, n)
	}
}

func touch(t testing.TB, path string) {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o600))
}

func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func BenchmarkMake(b *testing.B) {
	s := open(b, Config{})
	want := all
	want.Hostname = "web"
	for b.Loop() {
		_, err := s.Make(b.Context(), "pod", want)
		must(b, err)
		must(b, s.Remove(b.Context(), "pod"))
	}
}

func BenchmarkMakeReady(b *testing.B) {
	s := open(b, Config{Ready: 1})
	want := all
	want.Hostname = "web"
	for b.Loop() {
		b.StopTimer()
		must(b, s.prepare(b.Context()))
		b.StartTimer()
		_, err := s.Make(b.Context(), "pod", want)
		must(b, err)
		b.StopTimer()
		must(b, s.Remove(b.Context(), "pod"))
		b.StartTimer()
	}
}
