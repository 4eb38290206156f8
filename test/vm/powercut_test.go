package vm_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/spec"
	"berth/test/vm"
)

// churn pulls, starts, commits and removes for ever, and says each step on
// the console once the node has answered that it is done.
const churn = `
registry=127.0.0.1:5000
i=$1
while :; do
	i=$((i+1)); k=$((i%4)); image=$registry/i$k:latest
	echo "churn: pull $image"
	berth pull -q --insecure $image >/dev/null && echo "churn: pulled $image"
	berth run -d --name c$i -v v$i:/v $image sleep 100000 >/dev/null && echo "churn: started c$i"
	berth run --rm --network none $image sha256sum -c -s /sums || echo "churn: damaged $image"
	berth create --name d$i --network none $image true >/dev/null && echo "churn: created d$i"
	echo "churn: removing c$((i-1)) d$((i-2))"
	berth rm -f c$((i-1)) >/dev/null 2>&1 && echo "churn: removed c$((i-1))"
	berth rm d$((i-2)) >/dev/null 2>&1 && echo "churn: removed d$((i-2))"
	old=$registry/i$(((i+2)%4)):latest
	echo "churn: unnaming $old"
	berth rmi -f $old >/dev/null 2>&1 && echo "churn: unnamed $old"
	echo "churn: round $i"
done >/dev/console 2>&1
`

// churnPods has three at work at once that run pods with a container and
// remove them, for ever, and say each step on the console with the time.
const churnPods = `
. /pods.sh
say() { read -r up _ < /proc/uptime; echo "pods: $up $*"; }
work() {
	i=$2; old=
	while :; do
		i=$((i+1)); name=w$1-$i
		p=$(pod $name 0) && say ran $p && c=$(container $p $name 0 c 'exec sleep 100000') && say created $c of $p && crictl start $c >/dev/null && say started $c of $p
		[ -z "$old" ] || { say removing $old && crictl rmp -f $old >/dev/null && say removed $old; }
		old=$p; sleep 1
	done
}
for w in 0 1 2; do work $w $1 & done >/dev/console 2>&1
`

// A power cut in the middle of pulls, starts and removes, and of what kubelet
// does with pods: what was answered holds, what was removed stays away, and
// nothing is half made.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	tools := podTools(t)
	delete(tools, "config.toml")
	disk := vm.NodeDiskWith(t, 1024, tools)
	g := vm.Boot(t, vm.Linux612, disk, "")
	g.StartNode(t)
	g.Run(t, pushApp+`
set -e
# Four images of five layers each, the lower two shared; /sums tells them.
layer() { # layer FROM TO NAME KIB
	berth run --name make --network none $1 sh -c "dd if=/dev/urandom of=/$3 bs=1k count=$4 2>/dev/null; sha256sum /$3 >> /sums; mkdir -p /$3.d; ln /$3 /$3.d/link"
	berth commit make $2; berth rm make
}
layer busybox base shared 2000
for k in 0 1 2 3; do
	layer base one:$k a$k 1500; layer one:$k two:$k b$k 700; layer two:$k 127.0.0.1:5000/i$k:latest c$k 300
	berth push -q --insecure 127.0.0.1:5000/i$k:latest
done
crictl rmi localhost:5000/app:1 >/dev/null # what Kubernetes names is its own
berth rmi -f $(berth images -q)
[ -z "$(berth images -q)" ]
berth load -q -i /first.tar
crictl pull localhost:5000/app:1 >/dev/null
sync
cat > /churn.sh <<'END'
`+churn+`
END
cat > /churnpods.sh <<'END'
`+churnPods+`
END
`)
	seed := uint64(time.Now().UnixNano())
	t.Logf("the cuts come after random waits of seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // no secret
	for cut, marker := range []string{"churn: pull ", "churn: removing ", "churn: started "} {
		g.Run(t, fmt.Sprintf("setsid sh /churn.sh %d00 & setsid sh /churnpods.sh %d00 &", cut+1, cut+1))
		g.Wait(t, fmt.Sprintf("churn: round %d02\n", cut+1), 5*time.Minute)
		g.WaitAgain(t, marker, 5*time.Minute)
		wait := time.Duration(random.Int64N(int64(1200 * time.Millisecond)))
		<-time.After(wait)
		g.PowerCut()
		said := g.Output()
		t.Logf("cut %d, %v after %q; last words: %s", cut, wait, marker, said[strings.LastIndex(strings.TrimSpace(said), "\n")+1:])
		g = vm.Boot(t, vm.Linux612, disk, "")
		g.StartNode(t)
		consistentPods(t, g, said)
		consistent(t, g, said)
	}
	leaveNothing(t, g)
	g.Off(t)
}

const startRegistry = `
setsid berth registry --addr 127.0.0.1:5000 >/var/log/registry.log 2>&1 &
n=0; until timeout 2 wget -qO- http://127.0.0.1:5000/v2/ >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 60 ] || exit 1; sleep 0.2; done
`

// consistent compares what the node knows after the cut with what the guest
// had said before, and tries all of it.
func consistent(t *testing.T, g *vm.Guest, said string) {
	t.Helper()
	if strings.Contains(said, "churn: damaged") {
		t.Error("an image was damaged before the cut")
	}
	names := strings.Fields(g.Run(t, "berth ps -a --format '{{.Names}}'"))
	images := strings.Fields(g.Run(t, "berth images --format '{{.Repository}}:{{.Tag}}'"))
	haveContainers, goneContainers := outcome(said, []string{"started", "created"}, "removing", "removed")
	haveImages, goneImages := outcome(said, []string{"pulled"}, "unnaming", "unnamed")
	check := func(what string, there, have, gone []string) {
		for _, name := range have {
			if !slices.Contains(there, name) {
				t.Errorf("%s %s was there before the cut and is lost", what, name)
			}
		}
		for _, name := range gone {
			if slices.Contains(there, name) {
				t.Errorf("%s %s was removed before the cut and is back", what, name)
			}
		}
	}
	check("container", names, haveContainers, goneContainers)
	check("image", images, haveImages, goneImages)
	for _, c := range vm.JSON[spec.Container](t, g, "for c in $(berth ps -aq); do berth inspect $c | sed '1d;$d'; done") {
		if c.State.Status != spec.Created && c.State.Status != spec.Stopped {
			t.Errorf("after the cut %s is %s", c.Name, c.State.Status)
		}
	}
	g.Run(t, "berth system df")
	if driver := strings.TrimSpace(g.Run(t, "berth info --format '{{.Snapshotter}}'")); driver != "lcfs" {
		t.Errorf("the store is on rung %s, want lcfs", driver)
	}
	if out, code := g.Try(t, "berth system scrub --no-repair"); code != 0 {
		t.Errorf("scrub after the cut: %s", out)
	}
	if out, code := g.Try(t, `
cd /var/lib/berth/blobs/sha256 && for f in *; do
	[ -e "$f" ] || continue
	[ "$(sha256sum < $f)" = "$f  -" ] || { echo "blob $f is damaged"; exit 1; }
done`); code != 0 {
		t.Errorf("blobs: %s", out)
	}
	// Every container starts, every image runs whole, and all can be removed.
	if out, code := g.Try(t, `
for c in $(berth ps -a --format '{{.Names}}' | grep '^[cd][0-9]'); do
	berth start $c || { echo "container $c"; exit 1; }
done
for i in $(berth images -q --no-trunc); do
	berth run --rm --network none $i sh -c '[ ! -e /sums ] || sha256sum -c -s /sums' || { echo "image $i"; exit 1; }
done
berth rm -f $(berth ps -aq)`); code != 0 {
		t.Errorf("what is left does not run: %s\n%s", out, g.Run(t, "tail -n 20 /var/log/node.log"))
	}
	if out, code := g.Try(t, startRegistry+`
for k in 0 1 2 3; do
	berth pull -q --insecure 127.0.0.1:5000/i$k:latest && berth run --rm --network none 127.0.0.1:5000/i$k:latest sha256sum -c -s /sums || exit 1
done`); code != 0 {
		t.Errorf("pulling again: %s\n%s", out, g.Run(t, "tail -n 20 /var/log/node.log"))
	}
}

// surely is how long what was done with a pod may take to hold over a power
// cut: it waits for no disk, and goes with the next commit. Emulated, that is
// some seconds.
const surely = 4.0

// consistentPods compares likewise what there is of pods. They are not ready,
// new ones can be made, and all can be removed.
func consistentPods(t *testing.T, g *vm.Guest, said string) {
	t.Helper()
	type moment struct {
		at   float64
		what string
	}
	last, told, of := 0.0, map[string]moment{}, map[string]string{}
	for line := range strings.Lines(said) {
		var m moment
		var id, pod string
		if n, _ := fmt.Sscanf(line, "pods: %f %s %s of %s", &m.at, &m.what, &id, &pod); n >= 3 {
			last, told[id], of[id] = m.at, m, pod
		}
	}
	for id, pod := range of { // a container goes with its pod
		if m := told[pod]; m.what == "removing" || m.what == "removed" {
			told[id] = m
		}
	}
	pods, containers := podsOf(t, g)
	there := map[string]bool{}
	for _, p := range pods {
		there[p.ID] = true
		if p.State != "SANDBOX_NOTREADY" {
			t.Errorf("after the cut pod %s is %s", p.ID, p.State)
		}
	}
	for _, c := range containers {
		there[c.ID] = true
		if c.State != "CONTAINER_EXITED" || !there[c.PodSandboxID] {
			t.Errorf("after the cut there is %+v", c)
		}
	}
	count := map[string]int{}
	for id, m := range told {
		count[m.what]++
		switch {
		case m.at > last-surely:
		case !there[id] && (m.what == "ran" || m.what == "started"):
			t.Errorf("%s %s, %.1f s before the cut, and is lost", m.what, id, last-m.at)
		case there[id] && m.what == "removed":
			t.Errorf("%s was removed %.1f s before the cut, and is back", id, last-m.at)
		}
	}
	t.Logf("pods before the cut: %v; after it %d with %d containers", count, len(pods), len(containers))
	if count["ran"]+count["started"] == 0 {
		t.Errorf("no pods were made before the cut:\n%s", said)
	}
	if out, code := g.Try(t, startRegistry+`
set -e
. /pods.sh
crictl pull $app >/dev/null
p=$(pod again 0)
c=$(container $p again 0 c 'exec sleep 100000')
crictl start $c >/dev/null
crictl exec --sync $c true
for old in $(crictl pods -q --state notready); do crictl rmp $old >/dev/null; done
crictl rmp -f $p >/dev/null
[ -z "$(crictl pods -q)$(crictl ps -a -q)" ]
n=0; while ls -d /run/berth/pods/* /sys/fs/cgroup/k8s.io/* 2>/dev/null; do n=$((n+1)); [ $n -lt 40 ]; sleep 0.5; done`); code != 0 {
		t.Errorf("pods after the cut: %s\n%s", out, g.Run(t, "tail -n 40 /var/log/node.log"))
	}
}

// outcome reads the console: what was answered to be there, and what to be
// gone. What a step was cut off at may be either.
func outcome(said string, made []string, removing, removed string) (have, gone []string) {
	state := map[string]string{}
	for line := range strings.Lines(said) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "churn:" {
			continue
		}
		for _, name := range words[2:] {
			switch {
			case slices.Contains(made, words[1]):
				state[name] = "have"
			case words[1] == "pull" && state[name] != "have" || words[1] == removing:
				state[name] = "open"
			case words[1] == removed:
				state[name] = "gone"
			}
		}
	}
	for name, s := range state {
		switch s {
		case "have":
			have = append(have, name)
		case "gone":
			gone = append(gone, name)
		}
	}
	return have, gone
}

// leaveNothing removes all that the node knows; then nothing may be left that
// it does not know of.
func leaveNothing(t *testing.T, g *vm.Guest) {
	t.Helper()
	out := g.Run(t, `
crictl rmi -a >/dev/null
berth system prune -a -f --volumes >/dev/null
berth volume prune -a -f >/dev/null
berth ps -a -q; berth images -q; berth volume ls -q
n=0
left() {
	cd /var/lib/berth
	find blobs/sha256 objects meta recipes -type f; find layers -mindepth 1 -maxdepth 1 ! -name empty; find logs volumes -mindepth 1 -maxdepth 1 2>/dev/null
	ls /run/berth/netns /run/berth/containers 2>/dev/null | grep -v ':$'
	find /sys/fs/cgroup/berth -mindepth 1 -type d ! -name keeper
	grep -E 'overlay|erofs' /proc/mounts
	[ "$(grep -c ' /run/netns/' /proc/mounts)" -le 4 ] || grep ' /run/netns/' /proc/mounts # those that wait for a pod
	ip link | grep veth
}
while [ -n "$(left)" ] && [ $n -lt 50 ]; do n=$((n+1)); sleep 0.2; done
left; true`)
	if strings.TrimSpace(out) != "" {
		t.Errorf("after all was removed there is left:\n%s", out)
	}
}
