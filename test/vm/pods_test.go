package vm_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/test/vm"
)

// podTools is what a guest needs to run pods as kubelet does: crictl, a runc
// that maps the owners of mounts, and /pods.sh with functions. Images come
// from a registry in the guest, which has to be started.
func podTools(t *testing.T) map[string]string {
	t.Helper()
	cache, err := filepath.Abs("../../.cache/cri")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"bin/crictl":      need(t, filepath.Join(cache, "crictl")),
		"sbin/runc":       need(t, filepath.Join(cache, "runc")),
		"etc/crictl.yaml": script(t, "runtime-endpoint: unix:///run/berth/berth.sock\nimage-endpoint: unix:///run/berth/berth.sock\ntimeout: 60"),
		"etc/hosts":       script(t, "127.0.0.1 localhost"),
		"config.toml":     script(t, "runtime = \"runc\"\n[runtimes.runc]\npath = \"/sbin/runc\"\n[network]\npod_network = \"pods\""),
		"cni.toml":        script(t, "runtime = \"runc\"\n[runtimes.runc]\npath = \"/sbin/runc\"\n[network]\npod_network = \"cni\""),
		"pods.sh":         script(t, podFunctions),
	}
}

// podFunctions make pods and containers of the image app. Their configurations
// lie in /root/pods, for the time after a reboot too.
const podFunctions = `
app=localhost:5000/app:1
here=/root/pods
# pod NAME ATTEMPT [FIELDS [NAMESPACES [SECURITY]]]: runs a pod, with more fields
# of its configuration, of what it says of namespaces, and of security (so its
# containers), and prints its id
pod() {
	mkdir -p $here
	echo '"namespace_options": {"network": 0, '${4:-'"pid": 1'}'}'${5:+, $5} > $here/$1-$2.ns
	cat > $here/$1-$2.json <<-END
	{"metadata": {"name": "$1", "namespace": "vm", "uid": "uid-$1", "attempt": $2}, "hostname": "$1", "log_directory": "/var/log/pods/$1"${3:+, $3},
	 "linux": {"security_context": {$(cat $here/$1-$2.ns)}}}
	END
	crictl runp ${HANDLER:+-r $HANDLER} $here/$1-$2.json
}
# container ID POD ATTEMPT NAME SCRIPT [FIELDS]: makes a container in the pod
# of that id, name and attempt, and prints its id
container() {
	cat > $here/$2-$3-$4.json <<-END
	{"metadata": {"name": "$4", "attempt": $3}, "image": {"image": "$app"}, "command": ["sh", "-c", "$5"], "log_path": "$4-$3.log"${6:+, $6},
	 "linux": {"security_context": {$(cat $here/$2-$3.ns)}}}
	END
	crictl create $1 $here/$2-$3-$4.json $here/$2-$3.json
}
map='[{"container_id": 0, "host_id": 1000000, "length": 65536}]'
users='"pid": 1, "userns_options": {"mode": 0, "uids": '"$map"', "gids": '"$map"'}'
# volume ON AT: a mount with the owners of users
volume() { echo '{"host_path": "'$1'", "container_path": "'$2'", "uidMappings": '"$map"', "gidMappings": '"$map"'}'; }
# eventually COMMAND…: until it succeeds, for a minute
eventually() { tries=0; until "$@"; do tries=$((tries+1)); [ $tries -lt 60 ] || return 1; sleep 1; done; }
`

// pushApp puts the first image into the registry as what podFunctions run, and
// pulls it as kubelet does.
const pushApp = startRegistry + `
berth load -q -i /first.tar
berth tag ` + vm.Image + ` localhost:5000/app:1
berth push -q localhost:5000/app:1
crictl pull localhost:5000/app:1 >/dev/null
`

// podView and containerView are what crictl tells of them.
type podView struct {
	ID, State string
	Metadata  struct {
		Name    string
		Attempt int
	}
}

type containerView struct {
	ID, State    string
	PodSandboxID string
	Metadata     struct{ Name string }
}

func podsOf(t *testing.T, g *vm.Guest) (pods []podView, containers []containerView) {
	t.Helper()
	list := vm.JSON[struct {
		Items      []podView
		Containers []containerView
	}](t, g, "crictl pods -o json && crictl ps -a -o json")
	if len(list) != 2 {
		t.Fatalf("crictl lists %d times", len(list))
	}
	return list[0].Items, list[1].Containers
}

// ended is what crictl tells of a container: how it ended, and why.
func ended(t *testing.T, g *vm.Guest, id string) (state, reason string, code int) {
	t.Helper()
	all := vm.JSON[struct {
		Status struct {
			State, Reason string
			ExitCode      int
		}
	}](t, g, "crictl inspect "+id)
	return all[0].Status.State, all[0].Status.Reason, all[0].Status.ExitCode
}

// TestPodsAfterReboot reboots under pods, in order and by a power cut. Kubelet
// then finds them not ready and their containers ended, reads their logs, makes
// each pod anew with the next attempt, and removes the old one; addresses and
// ports are free for the new, on the node's own network and with plugins that
// keep what they gave away on the disk.
func TestPodsAfterReboot(t *testing.T) {
	t.Parallel()
	files := podTools(t)
	for _, plugin := range []string{"bridge", "host-local"} {
		files["opt/cni/bin/"+plugin] = need(t, "/usr/lib/cni/"+plugin)
	}
	// Three pods fit, and no more.
	files["etc/cni/net.d/10-few.conflist"] = script(t, `{"cniVersion": "1.0.0", "name": "few", "plugins": [{"type": "bridge", "bridge": "few0", "isGateway": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10", "rangeEnd": "10.99.0.12"}]]}}]}`)
	disk := vm.NodeDiskWith(t, 768, files)
	g := vm.Boot(t, vm.Linux612, disk, "")
	g.StartNode(t, "--config", "/config.toml")
	g.Run(t, pushApp+"berth network create --subnet 10.98.0.0/29 pods; mkdir -p /root/volume") // for five, and three are made
	before := makePods(t, g, 0, true)
	g.Off(t)

	g = vm.Boot(t, vm.Linux612, disk, "")
	g.StartNode(t, "--config", "/config.toml")
	afterReboot(t, g, before, 0, "in order")
	between := makePods(t, g, 1, true)
	removePods(t, g, before)
	if pods, containers := podsOf(t, g); len(pods) != 3 || len(containers) != 5 {
		t.Errorf("with the old pods removed there are %d, and %d containers", len(pods), len(containers))
	}
	userPods(t, g, "crun", true) // the others are runc's
	// From now on plugins make the network. What is left of the other one goes
	// with its pods.
	g.Run(t, `kill -9 $(cat /run/berth/node.pid)`)
	g.StartNode(t, "--config", "/cni.toml")
	removePods(t, g, between)
	before = makePods(t, g, 2, false)
	g.Run(t, "sleep 1; ls /var/lib/cni/networks/few")
	g.PowerCut()

	g = vm.Boot(t, vm.Linux612, disk, "")
	g.StartNode(t, "--config", "/cni.toml")
	afterReboot(t, g, before, 2, "power cut")
	after := makePods(t, g, 3, false) // the three addresses are free
	removePods(t, g, before)
	removePods(t, g, after)
	if out := g.Run(t, `
left() {
	ls /var/lib/cni/networks/few | grep '^10\.'
	ls -d /run/berth/pods/* /sys/fs/cgroup/k8s.io/* 2>/dev/null
	find /var/lib/berth/layers -mindepth 1 -maxdepth 1 ! -name empty
	grep -E 'overlay|/run/berth/(pods|containers)' /proc/mounts
	berth ps -a -q
}
n=0; while [ -n "$(left)" ] && [ $n -lt 20 ]; do n=$((n+1)); sleep 0.5; done
left; true`); strings.TrimSpace(out) != "" {
		t.Errorf("with all pods removed there is left:\n%s", out)
	}
	g.Off(t)
}

// made are the ids of the pods and containers of makePods by name.
type made map[string]string

// makePods makes three pods of an attempt: one with a port of the host, if it
// may have one, and containers in all states; one that shares its PID
// namespace; and one with a user namespace and a volume.
func makePods(t *testing.T, g *vm.Guest, attempt int, ports bool) made {
	t.Helper()
	mappings := ""
	if ports {
		mappings = `"port_mappings": [{"protocol": 0, "container_port": 80, "host_port": 8080}]`
	}
	out := g.Run(t, fmt.Sprintf(`
set -e
. /pods.sh
n=%d
ours() { eventually pod "$@" 2>/root/said || { cat /root/said >&2; exit 1; }; } # kubelet too tries again
web=$(ours web $n '%s')
server=$(container $web web $n server 'echo serves $(hostname); mkdir /w; echo attempt '$n' > /w/page; exec httpd -f -h /w')
done=$(container $web web $n done 'echo was here; exit 3')
idle=$(container $web web $n idle 'exec sleep 100000')
crictl start $server $done >/dev/null
shared=$(ours shared $n '' '"pid": 0')
peer=$(container $shared shared $n peer 'exec sleep 100000')
crictl start $peer >/dev/null
users=$(ours users $n '' "$users")
owner=$(container $users users $n owner 'echo x > /volume/file'$n'; chown 5:5 /volume/file'$n'; cat /proc/self/uid_map; exec sleep 100000' \
	'"mounts": ['"$(volume /root/volume /volume)"']')
crictl start $owner >/dev/null
[ "$(crictl exec --sync $peer ps | grep -c sleep)" = 1 ] && [ "$(crictl exec --sync $peer cat /proc/1/comm)" != sleep ]
eventually test -s /root/volume/file$n && eventually [ "$(stat -c %%u /root/volume/file$n)" = 5 ]
eventually sh -c "crictl logs $done 2>&1 | grep -q 'was here'"
ip=$(crictl inspectp -o go-template --template '{{.status.network.ip}}' $web)
eventually sh -c "timeout 5 wget -qO- http://$ip/page | grep -qx 'attempt $n'"
[ -z '%[2]s' ] || eventually sh -c "timeout 5 wget -qO- http://127.0.0.1:8080/page | grep -qx 'attempt $n'"
echo "ids: {\"web\": \"$web\", \"server\": \"$server\", \"done\": \"$done\", \"idle\": \"$idle\", \"shared\": \"$shared\", \"peer\": \"$peer\", \"users\": \"$users\", \"owner\": \"$owner\"}"
sync`, attempt, mappings))
	t.Logf("attempt %d is made", attempt)
	ids := made{}
	_, said, _ := strings.Cut(out, "ids: ")
	if err := json.Unmarshal([]byte(said), &ids); err != nil {
		t.Fatalf("make pods: %v\n%s", err, out)
	}
	return ids
}

// afterReboot expects pods to be there as kubelet needs them to be to make
// them anew.
func afterReboot(t *testing.T, g *vm.Guest, ids made, attempt int, how string) {
	t.Helper()
	pods, containers := podsOf(t, g)
	if len(pods) != 3 || len(containers) != 5 {
		t.Errorf("%s: there are %d pods and %d containers, want 3 and 5", how, len(pods), len(containers))
	}
	for _, p := range pods {
		if p.State != "SANDBOX_NOTREADY" || ids[p.Metadata.Name] != p.ID {
			t.Errorf("%s: %+v, made as %s", how, p, ids[p.Metadata.Name])
		}
	}
	for _, c := range containers {
		state, reason, code := ended(t, g, c.ID)
		t.Logf("%s: %s: %s %s %d", how, c.Metadata.Name, state, reason, code)
		wantReason, wantCode := reason, code
		switch {
		case c.Metadata.Name == "done":
			wantReason, wantCode = "Error", 3
		case how == "power cut" || c.Metadata.Name == "idle": // nobody saw an end
			wantReason, wantCode = "ContainerStatusUnknown", 255
		}
		if c.State != "CONTAINER_EXITED" || state != c.State || ids[c.Metadata.Name] != c.ID || reason == "" || reason == "Completed" || reason != wantReason || code != wantCode {
			t.Errorf("%s: container %s is %s and ended by %q with %d", how, c.Metadata.Name, state, reason, code)
		}
	}
	if out := g.Run(t, fmt.Sprintf("crictl logs %s; crictl logs %s", ids["server"], ids["done"])); !strings.Contains(out, "serves web") || !strings.Contains(out, "was here") {
		t.Errorf("%s: the logs are %q", how, out)
	}
	for what, command := range map[string]string{
		"start a container that ended":   "crictl start " + ids["server"],
		"start one that never started":   "crictl start " + ids["idle"],
		"run a command in one":           "crictl exec --sync " + ids["server"] + " true",
		"make one in a pod of that boot": fmt.Sprintf(". /pods.sh; container %s shared %d more true", ids["shared"], attempt),
	} {
		if out, code := g.Try(t, command); code == 0 {
			t.Errorf("%s: could %s: %s", how, what, out)
		}
	}
}

// userPods runs pods with user namespaces by a runtime: root, volumes on disk
// and images as volumes show and keep the owners of the container. Of a tmpfs
// too, or the kernel is said not to be able to.
func userPods(t *testing.T, g *vm.Guest, handler string, tmpfs bool) {
	out, code := g.Try(t, `
set -e
. /pods.sh
HANDLER=`+handler+`
mkdir -p /root/disk /run/memory
grep -q ' /run/memory ' /proc/mounts || mount -t tmpfs memory /run/memory
touch /root/disk/mine /run/memory/mine
chown 7:8 /root/disk/mine /run/memory/mine
p=$(pod users-`+handler+` 0 '' "$users")
c=$(container $p users-`+handler+` 0 disk 'exec sleep 100000' '"mounts": ['"$(volume /root/disk /disk)"', {"image": {"image": "localhost:5000/app:1"}, "container_path": "/image", "readonly": true}]')
crictl start $c >/dev/null
crictl exec --sync $c sh -c 'cat /proc/self/uid_map; touch /new /bin/new /disk/new; stat -c "%u:%g %n" /new /bin/busybox /bin/new /disk/mine /disk/new /image/bin/busybox /etc/hostname /dev/shm /proc/sys/net'
stat -c "%u:%g %n" /root/disk/new
stat -c %u /proc/$(crictl inspect -o go-template --template '{{.info.pid}}' $c)
c=$(container $p users-`+handler+` 0 memory 'exec sleep 100000' '"mounts": ['"$(volume /run/memory /memory)"']') && crictl start $c >/dev/null && crictl exec --sync $c sh -c 'touch /memory/new; stat -c "%u:%g %n" /memory/mine /memory/new' || echo no memory
crictl rmp -f $p >/dev/null
p=$(pod users-`+handler+` 1 '' "$(echo "$users" | sed 's/"pid": 1/"pid": 0/')")
c=$(container $p users-`+handler+` 1 peer 'exec sleep 100000') && crictl start $c >/dev/null && crictl exec --sync $c sh -c 'echo "first: $(cat /proc/1/comm)"'
crictl rmp -f $p >/dev/null
rm /root/disk/new`)
	for _, want := range []string{
		" 0    1000000      65536\n", "\n0:0 /new\n", "\n0:0 /bin/busybox\n", "\n0:0 /bin/new\n", "\n7:8 /disk/mine\n", "\n0:0 /disk/new\n",
		"\n0:0 /image/bin/busybox\n", "\n0:0 /dev/shm\n", "\n0:0 /root/disk/new\n", "\n1000000\n", "first: pause\n",
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Fatalf("%s: no %q: %d\n%s\n%s", handler, want, code, out, g.Run(t, "tail -n 30 /var/log/node.log"))
		}
	}
	inMemory := `7:8 /memory/mine\n0:0 /memory/new`
	if !tmpfs {
		inMemory = `/run/memory.*on this kernel(.|\n)*no memory`
	}
	if !regexp.MustCompile(inMemory).MatchString(out) {
		t.Errorf("%s: a volume in memory: %s", handler, out)
	}
	t.Logf("%s: %s", handler, out)
}

// removePods removes pods as kubelet does: containers first, of one pod at
// least, and the same once more.
func removePods(t *testing.T, g *vm.Guest, ids made) {
	t.Helper()
	began := time.Now()
	g.Run(t, fmt.Sprintf(`
set -e
crictl stopp %[1]s %[2]s %[3]s >/dev/null
crictl rm %[4]s %[5]s >/dev/null
crictl rmp %[1]s %[2]s %[3]s >/dev/null
! crictl inspectp %[1]s >/dev/null 2>&1`, ids["web"], ids["shared"], ids["users"], ids["server"], ids["idle"]))
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("removing took %v", took)
	}
}
