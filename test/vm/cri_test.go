package vm_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/test/cri/images"
	"berth/test/vm"
)

// kubernetes is a guest with a node that critest runs against: its images lie
// in a registry there, and AppArmor can be given profiles.
func kubernetes(t *testing.T, runtime string) *vm.Guest {
	t.Helper()
	cache, err := filepath.Abs("../../.cache")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"bin/critest":     need(t, filepath.Join(cache, "cri/critest")),
		"bin/crictl":      need(t, filepath.Join(cache, "cri/crictl")),
		"sbin/runc":       need(t, filepath.Join(cache, "cri/runc")),
		"bin/sudo":        script(t, `exec "$@"`), // critest loads profiles by it
		"bin/ipcmk":       need(t, "/usr/bin/ipcmk"),
		"config.toml":     script(t, fmt.Sprintf("runtime = %q\ncerts_dirs = [\"/certs.d\"]\n[runtimes.runc]\npath = \"/sbin/runc\"\n", runtime)),
		"etc/crictl.yaml": script(t, "runtime-endpoint: unix:///run/berth/berth.sock\nimage-endpoint: unix:///run/berth/berth.sock\ntimeout: 60"),
		"etc/hosts":       script(t, "127.0.0.1 localhost"),
		"etc/localtime":   need(t, "/etc/localtime"),
		"pods.sh":         script(t, podFunctions),
	}
	folder(t, files, "", need(t, filepath.Join(cache, "vm/apparmor")))
	folder(t, files, "registry", fill(t, filepath.Join(cache, "cri")))
	for _, host := range images.Hosts() {
		files["certs.d/"+host+"/hosts.toml"] = script(t, `server = "http://127.0.0.1:5000"`)
	}
	g := vm.Boot(t, vm.Linux612, vm.NodeDiskWith(t, 1024, files), "apparmor=1 security=apparmor psi=1")
	g.Run(t, "ip link set lo up; mkdir -p /var/cache/apparmor; setsid berth registry --addr 127.0.0.1:5000 --dir /registry > /var/log/registry.log 2>&1 & sleep 1")
	g.StartNode(t, "--config", "/config.toml")
	return g
}

// need is a file that has to be there for these tests.
func need(t *testing.T, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		vm.Missing(t, path)
	}
	return path
}

func script(t *testing.T, text string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if strings.HasPrefix(text, "exec") {
		text = "#!/bin/sh\n" + text
	}
	if _, err := f.WriteString(text + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o755); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// folder adds all that is in dir.
func folder(t *testing.T, files map[string]string, to, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files[filepath.Join(to, strings.TrimPrefix(path, dir))] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill makes the folder of a registry that has critest's images.
func fill(t *testing.T, tools string) string {
	t.Helper()
	made, err := images.Make(t.Context(), tools)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	registry := exec.CommandContext(t.Context(), need(t, "../../bin/berth"), "registry", "--addr", addr, "--dir", dir)
	if err := registry.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = registry.Process.Kill(); _ = registry.Wait() }()
	for late := time.After(10 * time.Second); ; {
		if err = images.Push(t.Context(), "http://"+addr, made); err == nil {
			return dir
		}
		select {
		case <-late:
			t.Fatal(err)
		case <-time.Tick(50 * time.Millisecond):
		}
	}
}

// benchmarks measure speed, and run only if asked for.
var benchmarks = regexp.MustCompile(`\[Benchmark\]|benchmark`)

// critest runs the specs that match focus in the guest; each has to pass, and
// there have to be as many as wanted.
func critest(t *testing.T, g *vm.Guest, focus string, want int) {
	t.Helper()
	out, _ := g.TryFor(t, 25*time.Minute, fmt.Sprintf(`
cd /tmp && critest --runtime-endpoint unix:///run/berth/berth.sock --image-endpoint unix:///run/berth/berth.sock \
	-ginkgo.json-report report.json -ginkgo.no-color -ginkgo.seed 1 -ginkgo.focus '%s' > critest.log 2>&1
echo "critest ended with $?"
tail -n 60 critest.log
echo "report:"
cat report.json`, focus))
	said, report, _ := strings.Cut(out, "\nreport:\n")
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText            string
			LeafNodeType            string
			State                   string
			RunTime                 time.Duration
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal([]byte(report), &suites); err != nil {
		t.Fatalf("critest's report: %v\n%s", err, out)
	}
	asked, passed := regexp.MustCompile(focus), 0
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
			switch {
			case s.State == "skipped" && (!asked.MatchString(name) || benchmarks.MatchString(name)):
			case s.State != "passed":
				t.Errorf("%s after %v: %s\n\t%.600s", s.State, s.RunTime, name, s.Failure.Message)
			case s.LeafNodeType == "It":
				passed++
			}
		}
	}
	if passed != want {
		t.Errorf("%d specs passed, want %d", passed, want)
	}
	if t.Failed() {
		t.Logf("%s\nlog of the node:\n%s", said, g.Run(t, "tail -n 60 /var/log/node.log"))
	}
}

// crictl makes a pod with a container and says what a shell in it prints. pod
// and container are what the configurations say beside their names.
func crictl(t *testing.T, g *vm.Guest, pod, container, script string) string {
	t.Helper()
	return g.Run(t, `
set -e
cat > /tmp/pod.json <<'END'
{"metadata": {"name": "p", "namespace": "default", "uid": "u", "attempt": 0}, "linux": {"cgroup_parent": "/pods", "security_context": {"namespace_options": {"network": 2}`+pod+`}}}
END
cat > /tmp/container.json <<'END'
{"metadata": {"name": "c", "attempt": 0}, "image": {"image": "`+images.Busybox+`"}, "command": ["sleep", "1000"], "linux": {"security_context": {`+container+`}}}
END
crictl pull `+images.Busybox+` >/dev/null
p=$(crictl runp /tmp/pod.json)
c=$(crictl create $p /tmp/container.json /tmp/pod.json)
crictl start $c >/dev/null
cat > /tmp/within <<'END'
`+script+`
END
crictl exec $c sh -c "$(cat /tmp/within)" 2>&1 || true
crictl stop -t 1 $c >/dev/null
crictl rmp -f $p >/dev/null`)
}

// What containers are held by where the kernel has AppArmor: the default
// profile, one of the machine's, none.
func TestAppArmor(t *testing.T) {
	t.Parallel()
	g := kubernetes(t, "crun")
	critest(t, g, "AppArmor", 9)
	profile := func(pod, container string) string {
		return strings.TrimSpace(crictl(t, g, pod, container, "cat /proc/self/attr/current"))
	}
	for what, c := range map[string]struct{ pod, container, want string }{
		"nothing asked":      {"", "", "berth-default (enforce)"},
		"default":            {"", `"apparmor": {"profile_type": 0}`, "berth-default (enforce)"},
		"unconfined":         {"", `"apparmor": {"profile_type": 1}`, "unconfined"},
		"one of the machine": {"", `"apparmor": {"profile_type": 2, "localhost_ref": "cri-validate-apparmor-test-audit-write"}`, "cri-validate-apparmor-test-audit-write (enforce)"},
		"privileged":         {`, "privileged": true`, `"privileged": true`, "unconfined"},
	} {
		if got := profile(c.pod, c.container); got != c.want {
			t.Errorf("%s: the profile is %q, want %q", what, got, c.want)
		}
	}
	// The default one keeps even who may mount from it, and lets what is the
	// container's own alone.
	out := crictl(t, g, "", `"capabilities": {"add_capabilities": ["SYS_ADMIN"]}`, `mkdir /x; mount -t tmpfs none /x
echo 1 > /proc/sys/kernel/panic
echo x > /own && cat /own
sleep 100 & kill $! && echo killed`)
	if !strings.Contains(out, "/x failed: Permission denied") || !strings.Contains(out, "panic: Permission denied") ||
		!strings.Contains(out, "\nx\n") || !strings.Contains(out, "killed") {
		t.Errorf("under the default profile:\n%s", out)
	}
	g.Off(t)
}

// Kubernetes' conformance suite where there is only cgroup version 2: all of
// it, for most of its time is waiting.
func TestCritestOnCgroupV2(t *testing.T) {
	t.Parallel()
	g := kubernetes(t, "runc")
	critest(t, g, os.Getenv("FOCUS"), 117)
	observed(t, g)
	if left := g.Run(t, "ls -d /sys/fs/cgroup/k8s.io/* /run/berth/pods/* /run/berth/kernelns/*-* 2>/dev/null; grep -o '/run/berth/containers[^ ]*' /proc/mounts; true"); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	g.Off(t)
}

// observed expects of a busy container what Kubernetes is to see of it: true
// figures, the pressure of those that wait among them, and every event; and
// that the notifier of system calls sees what it does.
func observed(t *testing.T, g *vm.Guest) {
	t.Helper()
	out := g.Run(t, `
set -e
. /pods.sh
app=`+images.Busybox+`
crictl pull $app >/dev/null
timeout 300 crictl events -o json >/root/events 2>&1 &
events=$!
p=$(pod busy 0 '"annotations": {"seccomp-notifier-action.crio.io": "stop"}' '' '"seccomp": {"profile_type": 0}')
c=$(container $p busy 0 works 'dd if=/dev/zero of=/file bs=1M count=8 conv=fsync; for i in 1 2 3 4; do while :; do :; done & done; wget -T 1 http://10.255.255.1/; while ! [ -e /go ]; do sleep 0.2; done; swapoff /x; sleep 1000')
crictl update --cpu-period 100000 --cpu-quota 20000 --memory 67108864 $c >/dev/null
crictl start $c >/dev/null
eventually crictl exec --sync $c test -s /file
sleep 5
echo "metrics:"
crictl metricsp
echo "stats:"
crictl stats -o json --id $c
echo "end:"
crictl exec --sync $c touch /go
eventually sh -c "crictl inspect -o go-template --template '{{.status.state}} {{.status.reason}}: {{.status.message}}' $c | grep -q 'EXITED seccomp killed: Used forbidden syscalls: swapoff (1x)'" ||
	{ crictl inspect $c; exit 1; }
crictl rmp -f $p >/dev/null
eventually grep -q DELETED /root/events
kill $events
echo "events: $(grep -o 'CONTAINER_[A-Z]*_EVENT' /root/events | sort | uniq -c | tr -s '\n ' ' ')"`)
	_, metrics, _ := strings.Cut(out, "metrics:\n")
	metrics, stats, _ := strings.Cut(metrics, "stats:\n")
	stats, rest, _ := strings.Cut(stats, "end:\n")
	t.Log(rest)
	t.Log(stats)
	values := map[string]float64{}
	var all struct {
		PodMetrics []struct {
			ContainerMetrics []struct {
				Metrics []struct {
					Name  string
					Value struct{ Value json.Number }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(metrics), &all); err != nil {
		t.Fatalf("metrics: %v\n%s", err, metrics)
	}
	for _, pod := range all.PodMetrics {
		for _, c := range pod.ContainerMetrics {
			for _, m := range c.Metrics {
				v, _ := m.Value.Value.Float64()
				values[m.Name] = max(values[m.Name], v)
			}
		}
	}
	for _, name := range []string{
		"container_cpu_usage_seconds_total", "container_cpu_user_seconds_total", "container_cpu_cfs_throttled_periods_total", "container_pressure_cpu_waiting_seconds_total",
		"container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_rss", "container_fs_writes_bytes_total", "container_processes", "container_threads",
	} {
		if values[name] <= 0 {
			t.Errorf("%s is %v", name, values[name])
		}
	}
	for _, name := range []string{"container_pressure_memory_stalled_seconds_total", "container_pressure_io_waiting_seconds_total"} {
		if _, ok := values[name]; !ok {
			t.Errorf("%s is not told", name)
		}
	}
	if v := values["container_spec_memory_limit_bytes"]; v != 64<<20 {
		t.Errorf("the limit of memory is %v", v)
	}
	for _, event := range []string{"CREATED", "STARTED", "STOPPED", "DELETED"} {
		if !strings.Contains(rest, "CONTAINER_"+event+"_EVENT") {
			t.Errorf("no event %s: %s", event, rest)
		}
	}
}
