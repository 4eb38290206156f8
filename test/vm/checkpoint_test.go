package vm_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/test/vm"
)

// TestCheckpoint has CRIU write and restore processes, which it cannot on the
// kernel of the machines that all other tests run on: by all doors that lead
// there.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	g := vm.Boot(t, vm.Linux612, vm.NodeDiskWith(t, 768, checkpointTools(t)), "")
	if out, code := g.Try(t, "criu check"); code != 0 {
		t.Fatalf("CRIU does not work in the guest: %s", out)
	}
	g.StartNode(t, "--config", "/config.toml")
	g.Run(t, pushApp+"berth network create pods; mkdir /cp")
	t.Run("container", func(t *testing.T) { checkpointContainer(t, g) })
	t.Run("restore", func(t *testing.T) { restoreByCreate(t, g) })
	t.Run("image", func(t *testing.T) { restoreImage(t, g) })
	t.Run("pod", func(t *testing.T) { restorePod(t, g) })
	t.Run("ctr", func(t *testing.T) { restoreTask(t, g) })
	t.Run("missing", func(t *testing.T) { missingCRIU(t, g) })
	if left := g.Run(t, "find /cp /var/lib/berth/checkpoint -mindepth 2; find /run/berth/runtime -name '.criu-*'"); left != "" {
		t.Errorf("left: %s", left)
	}
	g.Off(t)
}

// checkpointTools are podTools, CRIU with the programs that it runs, and what
// asks for checkpoints.
func checkpointTools(t *testing.T) map[string]string {
	t.Helper()
	tools := podTools(t)
	podpoint := filepath.Join(t.TempDir(), "podpoint")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", podpoint, "./podpoint") //nolint:gosec // a test's own command
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build podpoint: %v\n%s", err, out)
	}
	tools["bin/podpoint"] = podpoint
	tools["bin/tar"] = need(t, "/usr/bin/tar") // busybox' has not what CRIU wants of one
	tools["bin/ctr"] = need(t, "../../.cache/clients/bin/ctr")
	tools["usr/sbin/criu"] = need(t, "/usr/sbin/criu")
	for _, name := range []string{"usr/sbin/iptables-restore", "usr/sbin/ip6tables-restore", "usr/lib/x86_64-linux-gnu/xtables/libxt_mark.so", "usr/lib/x86_64-linux-gnu/xtables/libxt_standard.so"} {
		tools[name] = need(t, "/"+name)
	}
	tools["config.toml"] = script(t, "runtime = \"runc\"\n[runtimes.runc]\npath = \"/sbin/runc\"\n[network]\npod_network = \"pods\"\n[cri]\nrestore_by_create = true")
	tools["pods.sh"] = script(t, podFunctions+checkpointFunctions)
	return tools
}

// The container counts, in memory, in an open file and in its log; it has
// changed and deleted files of its image.
const checkpointFunctions = `
# as pod and container; what crictl warns of is not asked for
pod_() { pod "$@" 2>/dev/null; }
container_() { container "$@" 2>/dev/null; }
count='rm /etc/group; echo new > /etc/motd; exec 3<>/f; n=0; while :; do n=$((n+1)); echo $n >&3; echo $n; sleep 0.1; done'
# last LOG: what was said last
last() { tail -n 1 $1 | sed 's/.* F //'; }
# goes_on OLD NEW: the log NEW goes on where OLD was about to, and not from the beginning
goes_on() { eventually test -s $2; first=$(head -n 1 $2 | sed 's/.* F //'); [ $first -gt 1 ] && grep -q " F $((first-1))$" $1; }
`

// checkpointContainer writes a container that goes on to /cp/c.tar.
func checkpointContainer(t *testing.T, g *vm.Guest) {
	out := g.Run(t, `set -e
. /pods.sh
p=$(pod_ old 0)
c=$(container_ $p old 0 app "$(echo "$count" | sed 's/\\/&&/g; s/"/\\"/g')")
crictl start $c >/dev/null
log=/var/log/pods/old/app-0.log
eventually grep -q 'F 5$' $log
crictl checkpoint --export=/cp/c.tar $c >/dev/null
before=$(last $log)
crictl checkpoint --export=/cp/c.tar $c >/dev/null # over the old one
eventually test $(last $log) != $before # it runs on
stat -c %a /cp/c.tar
tar -tf /cp/c.tar
mkdir /tmp/c; tar -C /tmp/c -xf /cp/c.tar
tar -C /tmp/c -tf /tmp/c/rootfs-diff.tar
[ "$(tar -xOf /tmp/c/rootfs-diff.tar f | tail -n 1)" = "$(last /tmp/c/container.log)" ] && echo of one moment
crictl inspect $c | grep '"state"'`)
	for _, want := range []string{
		"600\n", "config.dump\n", "spec.dump\n", "status.dump\n", "dump.log\n", "container.log\n", "checkpoint/pages-1.img\n", "checkpoint/inventory.img\n",
		"etc/.wh.group\n", "etc/motd\n", "f\n", "of one moment\n", "CONTAINER_RUNNING",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q:\n%s", want, out)
		}
	}
	for doing, script := range map[string]string{
		"a folder that is not there":   `crictl checkpoint --export=/none/c.tar $(crictl ps -q)`,
		"a container that has not run": `c=$(container_ $(crictl pods -q) old 0 idle true); crictl checkpoint --export=/cp/idle.tar $c; code=$?; crictl rm $c >/dev/null; exit $code`,
	} {
		if out, code := g.Try(t, ". /pods.sh; "+script); code == 0 || strings.Contains(out, "Internal") && doing != "a folder that is not there" {
			t.Errorf("%s: %d %s", doing, code, out)
		}
	}
}

// restoreByCreate makes a container of another pod of the archive. It has that
// pod's namespaces, and can be written again.
func restoreByCreate(t *testing.T, g *vm.Guest) {
	out := g.Run(t, `set -e
. /pods.sh
p=$(pod_ new 0)
app=/cp/c.tar
c=$(container_ $p new 0 again "")
crictl start $c >/dev/null
goes_on /var/log/pods/old/app-0.log /var/log/pods/new/again-0.log && echo goes on
crictl exec $c sh -c 'hostname; cat /etc/hostname /etc/motd; ls /etc/group 2>/dev/null || echo gone; ip -4 addr show eth0 | grep -o "inet [^/]*"; readlink /proc/self/ns/uts; readlink /proc/self/ns/ipc'
echo "inet $(crictl inspectp $p | sed -n 's/.*"ip": "\(.*\)".*/\1/p' | head -n 1)"
stat -L -c '%n:[%i]' /run/berth/kernelns/$p/uts /run/berth/kernelns/$p/ipc | sed 's,.*/,,'
crictl exec $(crictl ps -q --name app) hostname
crictl checkpoint --export=/cp/again.tar $c >/dev/null
rm /cp/again.tar
crictl rmp -f $p >/dev/null`)
	lines := strings.Split(out, "\n")
	if len(lines) != 12 || strings.Join(lines[:5], " ") != "goes on new new new gone" || lines[5] != lines[8] || lines[6] != lines[9] || lines[7] != lines[10] || lines[11] != "old" {
		t.Errorf("what was restored:\n%s", out)
	}
	if out, code := g.Try(t, `. /pods.sh; p=$(pod_ new 0); app=/cp/c.tar; container $p new 0 again "" '"mounts": [{"container_path": "/more", "host_path": "/tmp"}]'; code=$?; crictl rmp -f $p >/dev/null; exit $code`); code == 0 || !strings.Contains(out, "FailedPrecondition") || !strings.Contains(out, "/more") {
		t.Errorf("a mount that it had not: %d %s", code, out)
	}
}

// restoreImage has the archive as the layer of an image that says what it is.
func restoreImage(t *testing.T, g *vm.Guest) {
	g.Run(t, `set -e
. /pods.sh
mkdir -p /tmp/oci/blobs/sha256; cd /tmp/oci
blob() { d=$(sha256sum $1 | cut -d ' ' -f 1); s=$(stat -c %s $1); mv $1 blobs/sha256/$d; }
cp /cp/c.tar layer; blob layer; layer=$d size=$s
echo '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:'$layer'"]}}' > config; blob config
media=application/vnd.oci.image
echo '{"schemaVersion":2,"mediaType":"'$media'.manifest.v1+json","config":{"mediaType":"'$media'.config.v1+json","digest":"sha256:'$d'","size":'$s'},
 "layers":[{"mediaType":"'$media'.layer.v1.tar","digest":"sha256:'$layer'","size":'$size'}],"annotations":{"io.kubernetes.cri-o.annotations.checkpoint.name":"app"}}' > manifest; blob manifest
echo '{"schemaVersion":2,"manifests":[{"mediaType":"'$media'.manifest.v1+json","digest":"sha256:'$d'","size":'$s',"annotations":{"io.containerd.image.name":"localhost:5000/checkpoint:1"}}]}' > index.json
echo '{"imageLayoutVersion":"1.0.0"}' > oci-layout
tar -cf /tmp/oci.tar *; cd /; rm -r /tmp/oci
ctr -a /run/berth/berth.sock -n k8s.io images import /tmp/oci.tar >/dev/null
p=$(pod_ image 0)
app=localhost:5000/checkpoint:1
c=$(container_ $p image 0 again "")
crictl start $c >/dev/null
goes_on /var/log/pods/old/app-0.log /var/log/pods/image/again-0.log
crictl rmp -f $p >/dev/null
crictl rmi localhost:5000/checkpoint:1 >/dev/null`)
}

// restorePod writes two containers of one moment, one of which talks to itself,
// and makes a pod of them again.
func restorePod(t *testing.T, g *vm.Guest) {
	out := g.Run(t, `set -e
. /pods.sh
mkdir -p /cp/pod /root/data; echo data > /root/data/file
mount='"mounts": [{"container_path": "/data", "host_path": "/root/data"}]'
p=$(pod_ two 0)
a=$(container_ $p two 0 one "$(echo "$count" | sed 's/\\/&&/g; s/"/\\"/g')" "$mount")
b=$(container_ $p two 0 two "echo shared > /dev/shm/x; exec 3<>/dev/shm/x; nc -l -p 7000 -e cat & sleep 1; sleep 1000 | nc 127.0.0.1 7000 & n=0; while :; do n=\$((n+1)); echo \$n; sleep 0.1; done")
crictl start $a $b >/dev/null
eventually sh -c "crictl exec $b netstat -tn | grep -q ESTABLISHED"
podpoint checkpoint $p /cp/pod $a $b
crictl ps -q | grep -c -e $a -e $b
podpoint checkpoint $p /cp/pod $a $b 2>&1 | grep -o 'is no empty folder'
crictl rmp -f $p >/dev/null
mv /var/log/pods/two /var/log/pods/before
sed -i 's/uid-two/uid-again/' /root/pods/two-0.json
podpoint restore /cp/pod /root/pods/two-0.json /root/pods/two-0-two.json /root/pods/two-0-one.json > /tmp/ids
rm -r /cp/pod
crictl ps -a -s Created -q | grep -c -e $(sed -n 2p /tmp/ids) -e $(sed -n 3p /tmp/ids)
for c in $(tail -n 2 /tmp/ids); do crictl start $c >/dev/null; done
goes_on /var/log/pods/before/one-0.log /var/log/pods/two/one-0.log && goes_on /var/log/pods/before/two-0.log /var/log/pods/two/two-0.log && echo both go on
crictl exec $(sed -n 3p /tmp/ids) cat /data/file /dev/shm/x
crictl exec $(sed -n 2p /tmp/ids) netstat -tn | grep -c ESTABLISHED || true
crictl rmp -f $(head -n 1 /tmp/ids) >/dev/null
rm -r /tmp/ids /var/log/pods/before /var/log/pods/two`)
	if out != "2\nis no empty folder\n2\nboth go on\ndata\nshared\n0" {
		t.Errorf("a pod: %s", out)
	}
}

// restoreTask is containerd's door: ctr writes a task to a folder, and one with
// its root file system to an image, and makes containers of them.
func restoreTask(t *testing.T, g *vm.Guest) {
	out := g.Run(t, `set -e
. /pods.sh
export CONTAINERD_ADDRESS=/run/berth/berth.sock CONTAINERD_NAMESPACE=default
ctr images import /first.tar >/dev/null
image=$(ctr images ls -q | head -n 1)
ctr run -d --log-uri file:///tmp/one.log $image one sh -c "$count"
eventually grep -q 5 /tmp/one.log
ctr tasks checkpoint --image-path /cp/task --work-path /tmp/work one
ls /cp/task/inventory.img
ctr tasks ls | grep -c '^one .*RUNNING'
ctr containers checkpoint --task --rw one localhost/checkpoint:1
ctr tasks kill -s KILL one; eventually sh -c "ctr tasks ls | grep -q STOPPED"; ctr tasks rm one >/dev/null 2>&1 || true; ctr containers rm one
ctr containers restore --rw --live two localhost/checkpoint:1 >/dev/null
ctr tasks ls | grep -c '^two .*RUNNING'
ctr tasks exec --exec-id x two sh -c 'a=$(tail -n 1 /f); sleep 1; b=$(tail -n 1 /f); [ $b -gt $a ] && [ $a -gt 5 ] && cat /etc/motd'
ctr tasks kill -s KILL two; eventually sh -c "ctr tasks ls | grep -q STOPPED"; ctr tasks rm two >/dev/null 2>&1 || true; ctr containers rm two
rm -r /cp/task`)
	if out != "/cp/task/inventory.img\n1\n1\nnew" {
		t.Errorf("a task: %s", out)
	}
}

// missingCRIU expects errors that say what is missing.
func missingCRIU(t *testing.T, g *vm.Guest) {
	for _, program := range []string{"criu", "iptables-restore"} {
		out, _ := g.Try(t, "mv /usr/sbin/"+program+" /tmp; crictl checkpoint --export=/cp/x.tar $(crictl ps -q --name app); mv /tmp/"+program+" /usr/sbin")
		if !strings.Contains(out, "Unimplemented") || !strings.Contains(out, program) {
			t.Errorf("without %s: %s", program, out)
		}
	}
	out, _ := g.Try(t, `. /pods.sh
HANDLER=crun; p=$(pod_ crun 0); c=$(container_ $p crun 0 app "sleep 1000"); crictl start $c >/dev/null
crictl checkpoint --export=/cp/crun.tar $c; crictl rmp -f $p >/dev/null`)
	if !strings.Contains(out, "Unimplemented") {
		t.Errorf("a runtime without CRIU: %s", out)
	}
	if state := g.Run(t, "crictl ps -q --name app | wc -l; rm /cp/c.tar; ls /cp; crictl rmp -fa >/dev/null"); strings.TrimSpace(state) != "1" {
		t.Errorf("after that: %s", state)
	}
}
