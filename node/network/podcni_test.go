package network

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/kv"
	"berth/spec"
)

// cuedPlugin notes what it is told, and does what the files beside it say:
// <command>.fail holds its error, <command>.hang has it hang with a child,
// <command>.linger has it leave one behind that has its pipes.
const cuedPlugin = `#!/bin/sh
dir=$(dirname "$0")
stdin=$(cat)
if [ $CNI_COMMAND = VERSION ]; then
	echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'; exit 0
fi
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME netns=$CNI_NETNS args=$CNI_ARGS $stdin" >> "$dir/calls"
if [ -e "$dir/$CNI_COMMAND.hang" ]; then
	trap '' TERM
	sleep 1000 & echo $! > "$dir/child"
	wait
fi
if [ -e "$dir/$CNI_COMMAND.linger" ]; then sleep 3 & fi
if [ -e "$dir/$CNI_COMMAND.fail" ]; then cat "$dir/$CNI_COMMAND.fail"; exit 1; fi
if [ $CNI_COMMAND = ADD ]; then
	echo '{"cniVersion":"1.1.0","interfaces":[{"name":"veth1"},{"name":"'$CNI_IFNAME'","mac":"02:00:00:00:00:01","sandbox":"'$CNI_NETNS'"},{"name":"net1","sandbox":"'$CNI_NETNS'"}],
"ips":[{"address":"fd00::5/64","interface":1},{"address":"10.99.0.5/24","gateway":"10.99.0.1","interface":1},{"address":"10.98.0.5/24","interface":2}]}'
fi
`

type plugins struct {
	t         *testing.T
	conf, bin string
}

func (m *machine) plugins(t *testing.T, confs map[string]string) (*plugins, func(*Config)) {
	t.Helper()
	p := &plugins{t, filepath.Join(m.dir, "net.d"), filepath.Join(m.dir, "bin")}
	must(t, errors.Join(os.MkdirAll(p.conf, 0o755), os.MkdirAll(p.bin, 0o755)))
	for name, text := range confs {
		write(t, filepath.Join(p.conf, name), text)
	}
	for _, name := range []string{"one", "two"} {
		must(t, os.WriteFile(filepath.Join(p.bin, name), []byte(cuedPlugin), 0o755))
	}
	return p, func(c *Config) { c.PodCNIConfDir, c.CNIBinDir, c.CNITimeout = p.conf, p.bin, 5*time.Second }
}

// cue says what the next runs of a command do; "" takes it back.
func (p *plugins) cue(file, text string) {
	p.t.Helper()
	if text == "" {
		must(p.t, os.Remove(filepath.Join(p.bin, file)))
		return
	}
	write(p.t, filepath.Join(p.bin, file), text)
}

// calls are what the plugins were told since the last time.
func (p *plugins) calls() string {
	p.t.Helper()
	path := filepath.Join(p.bin, "calls")
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.Remove(path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		must(p.t, err)
	}
	return string(b)
}

func contains(t *testing.T, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s: no %s in %s", what, want, text)
		}
	}
}

const confOne = `{"cniVersion":"1.1.0","name":"first","plugins":[{"type":"one","capabilities":{"portMappings":true,"bandwidth":true,"ipRanges":true,"dns":true,"cgroupPath":true}},{"type":"two"}]}`

func TestPodByPlugins(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne, "20-second.conflist": strings.ReplaceAll(confOne, "first", "second"), "00-broken.conflist": "{"})
	s := m.open(t, use)
	must(t, s.PodsReady(t.Context()))
	contains(t, "STATUS", p.calls(), "STATUS", `"name":"first"`)
	must(t, s.SetPodCIDR(t.Context(), "10.1.0.0/24,fd00:1::/64"))

	req := m.pod(t, "web", spec.PodPort{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"})
	req.CgroupParent = "/kubepods/x"
	req.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi"}
	req.DNS = &spec.PodDNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}}
	links, ips, err := s.AttachPod(t.Context(), req)
	must(t, err)
	equal(t, "addresses", strings.Join(ips, " "), "10.99.0.5 10.98.0.5 fd00::5")
	if len(links) != 2 || links[0].Name != "eth0" || links[0].MAC != "02:00:00:00:00:01" || len(links[0].IPs) != 2 || links[1].Name != "net1" {
		t.Errorf("links %+v", links)
	}
	calls := p.calls()
	contains(t, "ADD", calls, "ADD "+req.ID+" eth0 netns="+req.NetNS, "IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=web",
		"K8S_POD_INFRA_CONTAINER_ID="+req.ID, "K8S_POD_UID=uid-web",
		`"portMappings":[{"containerPort":80,"hostIP":"127.0.0.1","hostPort":8080,"protocol":"tcp"}]`,
		`"ingressRate":10000000`, `"egressRate":1073741824`, `"ipRanges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00:1::/64"}]]`,
		`"servers":["10.0.0.10"]`, `"cgroupPath":"/kubepods/x"`)
	if strings.Count(calls, "ADD") != 2 || !strings.Contains(calls, `"prevResult"`) {
		t.Errorf("calls: %s", calls)
	}
	// A client that asks again gets the same; the plugins say that it stands.
	_, again, err := s.AttachPod(t.Context(), req)
	must(t, err)
	equal(t, "again", len(again), 3)
	contains(t, "again", p.calls(), "CHECK "+req.ID)

	// The file is changed, is broken for a moment, and goes.
	file := filepath.Join(p.conf, "10-first.conflist")
	write(t, file, `{"cniVersion":"1.0.0","name":"changed","plugins":[{"type":"one"}]}`)
	attachPod(t, s, m.pod(t, "a"))
	contains(t, "changed file", p.calls(), `"name":"changed"`)
	write(t, file, `{"cniVersion":"1.0.0","na`)
	attachPod(t, s, m.pod(t, "b"))
	contains(t, "half written file", p.calls(), `"name":"changed"`)
	must(t, os.Remove(file))
	attachPod(t, s, m.pod(t, "c"))
	contains(t, "file gone", p.calls(), `"name":"second"`)

	// DEL is what ADD was, whatever the folder says now, after a reboot too.
	closeSet(t, s)
	must(t, os.RemoveAll(p.conf))
	must(t, os.RemoveAll(filepath.Join(m.dir, "state")))
	must(t, unix.Unmount(req.NetNS, unix.MNT_DETACH))
	s = m.open(t, use)
	must(t, s.DetachPod(t.Context(), req))
	calls = p.calls()
	contains(t, "DEL", calls, "DEL "+req.ID+" eth0 netns= args=", `"name":"first"`, `"hostPort":8080`)
	equal(t, "plugins that ran", strings.Count(calls, "DEL"), 2)
	must(t, s.DetachPod(t.Context(), req))
	equal(t, "a second time", p.calls(), "")
	equal(t, "pods", len(s.PodAttachments()), 3)
	must(t, s.PodsReady(t.Context())) // on our bridge
}

func TestPluginsThatFail(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use)
	req := m.pod(t, "web")

	p.cue("ADD.fail", `{"code":7,"msg":"no cable"}`)
	_, _, err := s.AttachPod(t.Context(), req)
	wantKind(t, err, errs.Internal, "no cable")
	contains(t, "after a failed ADD", p.calls(), "DEL "+req.ID)
	p.cue("ADD.fail", `{"code":11,"msg":"the controller is not there yet"}`)
	_, _, err = s.AttachPod(t.Context(), req)
	wantKind(t, err, errs.Unavailable, "controller")
	p.cue("ADD.fail", "Segmentation fault")
	_, _, err = s.AttachPod(t.Context(), req)
	wantKind(t, err, errs.Internal, "one")
	equal(t, "pods", len(s.PodAttachments()), 0)

	// Where DEL fails too, the pod is remembered until it succeeds.
	p.cue("DEL.fail", `{"code":7,"msg":"stuck"}`)
	_, _, err = s.AttachPod(t.Context(), req)
	wantKind(t, err, errs.Internal, "stuck")
	wantKind(t, s.DetachPod(t.Context(), req), errs.Internal, "stuck")
	_, _, err = s.AttachPod(t.Context(), req)
	wantKind(t, err, errs.Internal, "former network")
	closeSet(t, s)
	s = m.open(t, use)
	equal(t, "pods", len(s.PodAttachments()), 1)
	p.cue("DEL.fail", "")
	must(t, s.DetachPod(t.Context(), req))
	equal(t, "pods", len(s.PodAttachments()), 0)

	p.cue("ADD.fail", "")
	req.Ports = []spec.PodPort{{HostPort: 1, ContainerPort: 1}}
	req.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"}
	_, _, err = s.AttachPod(t.Context(), req)
	wantKind(t, err, errs.Invalid, "ingress-bandwidth")

	// What the plugins say of themselves is what kubelet hears.
	p.cue("STATUS.fail", `{"code":50,"msg":"no route to the controller"}`)
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "no route to the controller")
	p.calls()
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "no route to the controller")
	equal(t, "asked again at once", p.calls(), "")
	write(t, filepath.Join(p.conf, "10-first.conflist"), `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"absent"}]}`)
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "absent")
	write(t, filepath.Join(p.conf, "10-first.conflist"), `{`)
	closeSet(t, s)
	s = m.open(t, use)
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "10-first.conflist")
}

// A plugin that hangs is killed with what it started, and holds up nobody.
func TestPluginsThatHang(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use, func(c *Config) { c.CNITimeout = 500 * time.Millisecond })
	p.cue("ADD.hang", "yes")
	req, other := m.pod(t, "web"), m.pod(t, "other")
	var both sync.WaitGroup
	both.Go(func() {
		_, _, err := s.AttachPod(t.Context(), req)
		wantKind(t, err, errs.Timeout, "did not end its ADD in time")
	})
	for {
		if _, err := os.Stat(filepath.Join(p.bin, "child")); err == nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	p.cue("ADD.hang", "")
	attachPod(t, s, other)
	both.Wait()
	child, err := os.ReadFile(filepath.Join(p.bin, "child"))
	must(t, err)
	for isRunning(strings.TrimSpace(string(child))) {
		<-time.After(time.Millisecond)
	}
	contains(t, "after a killed ADD", p.calls(), "DEL "+req.ID)
	equal(t, "pods", strings.Join(s.PodAttachments(), " "), other.ID)

	// A client that goes away ends its plugin as well.
	p.cue("ADD.hang", "yes")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := s.AttachPod(ctx, req); err == nil {
		t.Error("attached by a plugin that hangs")
	}
	p.cue("ADD.hang", "")
	p.cue("STATUS.hang", "yes")
	wantKind(t, s.PodsReady(t.Context()), errs.Unavailable, "did not end its STATUS")
	p.cue("STATUS.hang", "")
}

// A DEL that takes too long goes on, for the next one would not find what it was
// about to take back, and is waited for; one that hangs is killed in the end.
func TestDELsThatTakeLong(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": strings.Replace(confOne, `,{"type":"two"}`, "", 1)})
	s := m.open(t, use, func(c *Config) { c.CNITimeout = 2 * time.Second })
	slow, stuck := m.pod(t, "slow"), m.pod(t, "stuck")
	attachPod(t, s, slow)
	attachPod(t, s, stuck)
	p.calls()
	p.cue("DEL.hang", "yes")
	wantKind(t, s.DetachPod(t.Context(), slow), errs.Timeout, "did not end its DEL in time")
	p.cue("DEL.hang", "")
	again := make(chan error, 1)
	go func() { again <- s.DetachPod(t.Context(), slow) }()
	child, err := os.ReadFile(filepath.Join(p.bin, "child"))
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(child)))
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL)) // now it ends
	must(t, <-again)
	equal(t, "DELs", strings.Count(p.calls(), "DEL "+slow.ID), 1)

	p.cue("DEL.hang", "yes")
	wantKind(t, s.DetachPod(t.Context(), stuck), errs.Timeout, "did not end its DEL in time")
	p.cue("DEL.hang", "")
	must(t, s.DetachPod(t.Context(), stuck))
	equal(t, "DELs", strings.Count(p.calls(), "DEL "+stuck.ID), 2)
	equal(t, "pods", len(s.PodAttachments()), 0)
}

// A plugin that has ended is not taken for one that failed because its pipes are
// still open.
func TestPluginsWhosePipesStayOpen(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use)
	p.cue("ADD.linger", "yes")
	p.cue("DEL.linger", "yes")
	req := m.pod(t, "web")
	attachPod(t, s, req)
	must(t, s.DetachPod(t.Context(), req))
	equal(t, "pods", strings.Join(s.PodAttachments(), " "), "")
}

func isRunning(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A node that is killed in ADD knows afterwards that there is something to
// take back.
func TestKilledInADD(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use)
	req := m.pod(t, "web")
	p.cue("ADD.hang", "yes")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _, _, _ = s.AttachPod(ctx, req) }()
	for {
		if _, err := os.Stat(filepath.Join(p.bin, "child")); err == nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	kept, err := os.ReadFile(s.podFile(req.ID))
	must(t, err)
	cancel()
	<-ended
	closeSet(t, s)
	p.calls()
	must(t, os.Remove(filepath.Join(p.bin, "child")))
	plugin := exec.CommandContext(t.Context(), filepath.Join(p.bin, "one"))
	plugin.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+req.ID)
	must(t, plugin.Start()) // it goes on when its node is killed
	for {
		if _, err := os.Stat(filepath.Join(p.bin, "child")); err == nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	child, err := os.ReadFile(filepath.Join(p.bin, "child"))
	must(t, err)
	p.cue("ADD.hang", "")
	write(t, s.podFile(req.ID), string(kept)) // as it was when the node was killed
	write(t, s.podFile(req.ID)+".new", "{")
	s = m.open(t, use)
	if err := plugin.Wait(); err == nil || isRunning(strings.TrimSpace(string(child))) {
		t.Errorf("the plugin of the killed node is at work: %v", err)
	}
	p.calls()
	equal(t, "pods", strings.Join(s.PodAttachments(), " "), req.ID)
	attachPod(t, s, req)
	contains(t, "attached again", p.calls(), "DEL "+req.ID, "ADD "+req.ID)
}

// A DEL that a killed node had begun goes on, and the next node's comes after
// it; one that hangs is killed.
func TestKilledInDEL(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use)
	web, other := m.pod(t, "web"), m.pod(t, "other")
	attachPod(t, s, web)
	attachPod(t, s, other)
	closeSet(t, s)
	del := func(id, script string) *exec.Cmd {
		plugin := exec.CommandContext(t.Context(), "sh", "-c", script)
		plugin.Dir, plugin.Env = p.bin, append(os.Environ(), "CNI_COMMAND=DEL", "CNI_CONTAINERID="+id)
		must(t, plugin.Start())
		return plugin
	}
	slow, stuck := del(web.ID, `while [ ! -e go ]; do sleep 0.01; done; echo "the earlier one" >>calls`), del(other.ID, "sleep 1000")
	p.calls()
	s = m.open(t, use, func(c *Config) { c.CNITimeout = 2 * time.Second })
	gone := make(chan error, 1)
	go func() { gone <- s.DetachPod(t.Context(), web) }()
	<-time.After(50 * time.Millisecond)
	equal(t, "calls meanwhile", p.calls(), "")
	p.cue("go", "yes")
	must(t, slow.Wait())
	must(t, <-gone)
	if calls := p.calls(); strings.Index(calls, "the earlier one") > strings.Index(calls, "DEL "+web.ID) {
		t.Errorf("DEL does not come after the earlier one: %s", calls)
	}
	must(t, s.DetachPod(t.Context(), other))
	if err := stuck.Wait(); err == nil {
		t.Error("the DEL that hangs has ended by itself")
	}
	equal(t, "pods", strings.Join(s.PodAttachments(), " "), "")
}

func TestCollectByPlugins(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne, "20-others.conflist": `{"cniVersion":"1.1.0","name":"others","disableGC":true,"plugins":[{"type":"one"}]}`})
	s := m.open(t, use)
	must(t, s.collectCNI(t.Context()))
	contains(t, "GC", p.calls(), "GC", `"cni.dev/valid-attachments":[]`)
	web, lost := m.pod(t, "web"), m.pod(t, "lost")
	attachPod(t, s, web)
	attachPod(t, s, lost)
	a, _ := s.attachment(lost.ID)
	s.forget(a) // as a power cut does
	p.calls()
	must(t, s.collectCNI(t.Context()))
	calls := p.calls()
	contains(t, "GC", calls, "DEL "+lost.ID, `"containerID":"`+web.ID+`"`, `"name":"first"`)
	if strings.Contains(calls, "DEL "+web.ID) || strings.Contains(calls, `"name":"others"`) {
		t.Errorf("collected too much: %s", calls)
	}
}

// The plugins that Debian has, with both families, ports and limits.
func TestPodByRealPlugins(t *testing.T) {
	for _, need := range []string{"bridge", "portmap", "bandwidth"} {
		if _, err := os.Stat("/usr/lib/cni/" + need); err != nil {
			t.Skip("needs Debian's containernetworking-plugins")
		}
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("portmap needs iptables")
	}
	m := newMachine(t)
	conf := filepath.Join(m.dir, "net.d")
	must(t, os.MkdirAll(conf, 0o755))
	write(t, filepath.Join(conf, "10-real.conflist"), `{"cniVersion":"1.0.0","name":"real","plugins":[
		{"type":"bridge","bridge":"cni9","isGateway":true,"ipMasq":true,"hairpinMode":true,"capabilities":{"ipRanges":true},
		 "ipam":{"type":"host-local","dataDir":"`+m.dir+`/ipam","routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	use := func(c *Config) { c.PodCNIConfDir, c.CNIBinDir = conf, "/usr/lib/cni" }
	s := m.open(t, use)
	must(t, s.SetPodCIDR(t.Context(), "10.99.0.0/24,fd00:99::/64"))
	web := m.pod(t, "web", spec.PodPort{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	ips := attachPod(t, s, web)
	if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.99.0.") || !strings.HasPrefix(ips[1], "fd00:99::") {
		t.Fatalf("addresses %v", ips)
	}
	other := m.pod(t, "other")
	otherIPs := attachPod(t, s, other)
	echo(t, web.NetNS, "tcp", 80)
	equal(t, "seen as", reaches(t, "neighbour", other.NetNS, "tcp", ips[0]+":80"), otherIPs[0])
	reaches(t, "host port", m.host, "tcp", "127.0.0.1:8080")
	reaches(t, "host port", m.outside, "tcp", hostAddr4+":8080")
	equal(t, "again", attachPod(t, s, other)[0], otherIPs[0]) // portmap's own CHECK fails with two families

	// The node and the machine start anew.
	closeSet(t, s)
	must(t, os.RemoveAll(filepath.Join(m.dir, "state")))
	must(t, unix.Unmount(other.NetNS, unix.MNT_DETACH))
	s = m.open(t, use)
	must(t, s.DetachPod(t.Context(), other))
	must(t, s.DetachPod(t.Context(), web))
	left, err := filepath.Glob(m.dir + "/ipam/real/*:*")
	must(t, err)
	left4, err := filepath.Glob(m.dir + "/ipam/real/10.*")
	must(t, err)
	equal(t, "addresses left", len(left)+len(left4), 0)
	blocked(t, "host port", m.host, "tcp", "127.0.0.1:8080")
}

// What is on disk of a pod's network says what DEL needs.
func TestPodRecord(t *testing.T) {
	m := newMachine(t)
	_, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use)
	req := m.pod(t, "web")
	attachPod(t, s, req)
	closeSet(t, s)
	db, err := kv.Open(filepath.Join(m.dir, "db"))
	must(t, err)
	defer db.Close()
	must(t, db.View(func(tx *kv.Tx) error {
		var record attachmentRecord
		if err := json.Unmarshal(tx.Get(bucket, "att/"+req.ID), &record); err != nil {
			return err
		}
		equal(t, "name", record.Name, "web.default")
		contains(t, "configuration", string(record.Pod.CNI), `"name":"first"`, `"type":"two"`)
		return nil
	}))
	s.cfg.DB = db // which the end of the test closes again
}
