package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

// pod makes a namespace for a pod.
func (m *machine) pod(t testing.TB, name string, ports ...spec.PodPort) PodRequest {
	t.Helper()
	ns := filepath.Join(m.dir, "ns-"+name)
	write(t, ns, "")
	must(t, makeNamespace(ns))
	t.Cleanup(func() {
		if isNamespace(ns) {
			must(t, unix.Unmount(ns, unix.MNT_DETACH))
		}
	})
	id := fmt.Sprintf("%x", name) + strings.Repeat("0", 64-2*len(name))
	return PodRequest{ID: id, Name: name, Namespace: "default", UID: "uid-" + name, NetNS: ns, Ports: ports}
}

func attachPod(t testing.TB, s *Set, req PodRequest) []string {
	t.Helper()
	_, ips, err := s.AttachPod(t.Context(), req)
	must(t, err)
	return ips
}

func TestPodOnBridge(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	before := m.traces(t, s)
	must(t, s.PodsReady(t.Context()))
	web := m.pod(t, "web",
		spec.PodPort{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, spec.PodPort{HostPort: 8053, ContainerPort: 53, Protocol: "udp"},
		spec.PodPort{HostPort: 9999, ContainerPort: 99, Protocol: "sctp"}, spec.PodPort{ContainerPort: 8081, Protocol: "tcp"})
	links, ips, err := s.AttachPod(t.Context(), web)
	must(t, err)
	if len(links) != 1 || links[0].Name != "eth0" || links[0].MAC == "" || len(ips) != 2 || !strings.Contains(ips[1], ":") {
		t.Fatalf("links %+v, addresses %v", links, ips)
	}
	again, sameIPs, err := s.AttachPod(t.Context(), web)
	must(t, err)
	equal(t, "attached again", fmt.Sprint(again, sameIPs), fmt.Sprint(links, ips))

	other := m.pod(t, "other")
	otherIPs := attachPod(t, s, other)
	echo(t, web.NetNS, "tcp", 80)
	echo(t, web.NetNS, "udp", 53)
	equal(t, "seen by a neighbour", reaches(t, "neighbour", other.NetNS, "tcp", ips[0]+":80"), otherIPs[0])
	for _, address := range []string{"127.0.0.1", "[::1]", hostAddr4, "[" + hostAddr6 + "]"} {
		reaches(t, "host port", m.host, "tcp", address+":8080")
		reaches(t, "host port", m.host, "udp", address+":8053")
	}
	reaches(t, "host port", m.outside, "tcp", hostAddr4+":8080")
	reaches(t, "itself by the host", web.NetNS, "tcp", hostAddr4+":8080")

	_, _, err = s.AttachPod(t.Context(), m.pod(t, "late", spec.PodPort{HostPort: 8080, ContainerPort: 1}))
	wantKind(t, err, errs.Conflict, "8080/tcp is in use by container web.default")
	_, _, err = s.AttachPod(t.Context(), m.pod(t, "late2", spec.PodPort{HostPort: 9999, ContainerPort: 1, Protocol: "sctp"}))
	wantKind(t, err, errs.Conflict, "9999/sctp")
	_, _, err = s.AttachPod(t.Context(), m.pod(t, "odd", spec.PodPort{HostPort: 70000, ContainerPort: 1}))
	wantKind(t, err, errs.Invalid, "70000")

	equal(t, "pods", strings.Join(s.PodAttachments(), " "), other.ID+" "+web.ID)
	equal(t, "containers", len(s.Claims()), 0)
	must(t, s.Reconcile(t.Context(), nil)) // of containers
	reaches(t, "after a reconcile", other.NetNS, "tcp", ips[0]+":80")

	// A restart finds them; what the records missed is in the state folder.
	closeSet(t, s)
	db, err := kv.Open(filepath.Join(m.dir, "db"))
	must(t, err)
	must(t, db.Update(t.Context(), func(tx *kv.Tx) error { return tx.Delete(bucket, "att/"+web.ID) }))
	must(t, db.Close())
	s = m.open(t)
	equal(t, "pods", strings.Join(s.PodAttachments(), " "), other.ID+" "+web.ID)
	reaches(t, "after a restart", m.host, "tcp", "[::1]:8080")
	fresh := attachPod(t, s, m.pod(t, "fresh"))
	if fresh[0] == ips[0] || fresh[0] == otherIPs[0] {
		t.Errorf("address %s given out twice", fresh[0])
	}

	for _, id := range append(s.PodAttachments(), web.ID) {
		must(t, s.DetachPod(t.Context(), PodRequest{ID: id}))
	}
	s.settle(t)
	equal(t, "left", strings.Join(m.traces(t, s), "\n"), strings.Join(before, "\n"))
	equal(t, "leases left", leases(s), 0)
	files, err := os.ReadDir(filepath.Join(m.dir, "state", "podnet"))
	must(t, err)
	equal(t, "files left", len(files), 0)
}

// A pod whose namespace has its link already is attached without touching it.
func TestPodSeats(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	before := m.traces(t, s)
	ready, unused, failed := m.pod(t, "ready"), m.pod(t, "unused"), m.pod(t, "failed")
	for _, p := range []PodRequest{ready, unused, failed} {
		must(t, s.PlugReady(t.Context(), p.NetNS))
	}
	must(t, s.Reconcile(t.Context(), nil)) // which leaves links that nobody has yet
	moved := filepath.Join(m.dir, "moved")
	write(t, moved, "")
	must(t, unix.Mount(ready.NetNS, moved, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(moved, unix.MNT_DETACH)) })
	ready.NetNS = moved
	ready.Ports = []spec.PodPort{{HostPort: 8080, ContainerPort: 80}}
	ips := attachPod(t, s, ready)
	must(t, s.Reconcile(t.Context(), nil))
	echo(t, ready.NetNS, "tcp", 80)
	other := m.pod(t, "other")
	attachPod(t, s, other)
	reaches(t, "neighbour", other.NetNS, "tcp", ips[0]+":80")
	reaches(t, "host port", m.host, "tcp", "127.0.0.1:8080")

	// One that fails gives its link back.
	failed.Ports = ready.Ports
	_, _, err := s.AttachPod(t.Context(), failed)
	wantKind(t, err, errs.Conflict, "8080")
	s.UnplugReady(failed.NetNS)
	s.UnplugReady(unused.NetNS)
	must(t, errors.Join(s.DetachPod(t.Context(), ready), s.DetachPod(t.Context(), other)))
	s.settle(t)
	equal(t, "left", strings.Join(m.traces(t, s), "\n"), strings.Join(before, "\n"))
	equal(t, "leases left", leases(s), 0)
}

// A pod that finds no address has that of a namespace that waits for its pod;
// pods alone can take all there are.
func TestPodTakesAddressOfASeat(t *testing.T) {
	m := newMachine(t)
	s := m.open(t, func(c *Config) { c.PodNetwork = "few" })
	before := m.traces(t, s)
	_, err := s.Create(t.Context(), spec.NetworkConfig{Name: "few", Subnets: []spec.Subnet{{Subnet: "10.77.0.0/29"}}})
	must(t, err)
	var pods []PodRequest
	for _, name := range []string{"a", "b", "c", "d", "e"} { // and the gateway
		pods = append(pods, m.pod(t, name))
		must(t, s.PlugReady(t.Context(), pods[len(pods)-1].NetNS))
	}
	wantKind(t, s.PlugReady(t.Context(), m.pod(t, "none").NetNS), errs.Exhausted, "10.77.0.0/29")
	pods = append([]PodRequest{m.pod(t, "sudden")}, pods[:4]...)
	ips, last := map[string]bool{}, ""
	for _, p := range pods {
		last = attachPod(t, s, p)[0]
		ips[last] = true
	}
	equal(t, "addresses", len(ips), 5)
	equal(t, "seats", len(s.seats), 0)
	_, _, err = s.AttachPod(t.Context(), m.pod(t, "late"))
	wantKind(t, err, errs.Exhausted, "10.77.0.0/29")
	echo(t, pods[4].NetNS, "tcp", 80)
	reaches(t, "neighbour", pods[0].NetNS, "tcp", last+":80")
	for _, p := range pods {
		must(t, s.DetachPod(t.Context(), p))
	}
	must(t, s.Remove(t.Context(), "few"))
	s.settle(t)
	equal(t, "left", strings.Join(m.traces(t, s), "\n"), strings.Join(before, "\n"))
}

func TestPodNetworkChosen(t *testing.T) {
	m := newMachine(t)
	use := withCNI(t, m, map[string]string{"10-fake.conflist": `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake"}]}`})
	s := m.open(t, use, func(c *Config) { c.PodNetwork = "blue" })
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "blue")
	_, err := s.Create(t.Context(), spec.NetworkConfig{Name: "blue", Subnets: []spec.Subnet{{Subnet: "10.77.0.0/24"}}})
	must(t, err)
	must(t, s.PodsReady(t.Context()))
	ips := attachPod(t, s, m.pod(t, "a"))
	equal(t, "address", ips[0], "10.77.0.2")
	closeSet(t, s)

	s = m.open(t, func(c *Config) { c.PodCNIConfDir, c.PodNetwork = filepath.Join(m.dir, "none"), "cni" })
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "no CNI configuration in")
	_, _, err = s.AttachPod(t.Context(), m.pod(t, "b"))
	wantKind(t, err, errs.Unavailable, "no CNI configuration in")
	must(t, s.PlugReady(t.Context(), m.pod(t, "c").NetNS))
	equal(t, "links ready", len(s.seats), 0)
}

func TestPodCIDR(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	wantKind(t, s.SetPodCIDR(t.Context(), "10.1.0.0"), errs.Invalid, "10.1.0.0")
	must(t, s.SetPodCIDR(t.Context(), "10.1.2.0/24, fd00:1::/64"))
	must(t, s.SetPodCIDR(t.Context(), ""))
	closeSet(t, s)
	s = m.open(t)
	equal(t, "ranges", strings.Join(s.podCIDRs, " "), "10.1.2.0/24 fd00:1::/64")
}

func TestQuantity(t *testing.T) {
	for text, want := range map[string]int64{"10M": 10e6, "1.5Gi": 3 << 29, "2e6": 2e6, "1000": 1000, "100m": 1, "1E": 1e18, "1k": 1000} {
		if got, ok := quantity(text); !ok || got != want {
			t.Errorf("%s: %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "M", "10X", "-5", "1e30", "NaN", "Inf", "10 M", "1kk"} {
		if got, ok := quantity(text); ok {
			t.Errorf("%q is %d", text, got)
		}
	}
}

func leases(s *Set) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, net := range s.networks {
		n += len(net.leases)
	}
	return n
}

func BenchmarkAttachPod(b *testing.B) {
	m := newMachine(b)
	s := m.open(b)
	p := m.pod(b, "pod")
	for b.Loop() {
		_, _, err := s.AttachPod(b.Context(), p)
		must(b, err)
		b.StopTimer()
		must(b, s.DetachPod(context.Background(), p))
		s.settle(b)
		b.StartTimer()
	}
}

func BenchmarkAttachPodReady(b *testing.B) {
	m := newMachine(b)
	s := m.open(b)
	p := m.pod(b, "pod")
	for b.Loop() {
		b.StopTimer()
		must(b, s.PlugReady(b.Context(), p.NetNS))
		b.StartTimer()
		_, _, err := s.AttachPod(b.Context(), p)
		must(b, err)
		b.StopTimer()
		must(b, s.DetachPod(context.Background(), p))
		s.settle(b)
		b.StartTimer()
	}
}

// The namespace of a pod with shifted users belongs to another user namespace.
func TestPodOfOtherUsers(t *testing.T) {
	m := newMachine(t)
	s := m.open(t)
	child, err := os.StartProcess("/proc/self/exe", []string{"users"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}, GidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
		Ptrace: true, Pdeathsig: unix.SIGKILL,
	}})
	must(t, err)
	t.Cleanup(func() { _ = child.Kill(); _, _ = child.Wait() })
	req := m.pod(t, "web", spec.PodPort{HostPort: 8080, ContainerPort: 80})
	req.NetNS = fmt.Sprintf("/proc/%d/ns/net", child.Pid)
	ips := attachPod(t, s, req)
	echo(t, req.NetNS, "tcp", 80)
	for _, address := range []string{ips[0] + ":80", "[" + ips[1] + "]:80", "127.0.0.1:8080", "[::1]:8080"} {
		reaches(t, "pod of other users", m.host, "tcp", address)
	}
	must(t, s.DetachPod(t.Context(), req))
	s.settle(t)
}
