package vm_test

import (
	"strings"
	"testing"

	"berth/spec"
	"berth/test/vm"
)

// After a reboot, in order or by a power cut, the containers run again that
// their policy brings back, with ports, volumes, networks and names; the logs
// of before can be read and nothing else runs.
func TestReboot(t *testing.T) {
	t.Parallel()
	disk := vm.NodeDisk(t, 768)
	g := vm.Boot(t, vm.Linux612, disk, "")
	g.StartNode(t)
	g.Run(t, `
set -e
berth load -q -i /first.tar
berth network create --subnet 10.77.0.0/24 --label kept=yes town
berth volume create --label kept=yes data
# Each start is counted on the volume and told in the log.
berth run -d --name web --restart always --network town --ip 10.77.0.10 -p 8080:80 -p 5353:53/udp -v data:/data -m 64m busybox \
	sh -c 'echo start >> /data/starts; echo "start $(wc -l < /data/starts)"; echo mine > /own; exec httpd -f -h /data'
berth run -d --name client --restart unless-stopped --network town busybox sleep 100000
berth run -d --name stopped --restart unless-stopped busybox sleep 100000
berth run -d --name resumed --restart always busybox sleep 100000
berth run -d --name once --restart no busybox sh -c 'echo said before; exec sleep 100000'
berth run -d --name failing --restart on-failure:3 busybox sleep 100000
berth run --name finished --restart on-failure busybox true
berth run -d --rm --name passing -v /anonymous busybox sleep 100000
berth create --name fresh --restart always busybox sleep 100000
berth stop -t 0 stopped resumed
sync`)
	before := inspect(t, g, "web")
	boot := "in order"
	check := func(starts string) {
		t.Helper()
		g = vm.Boot(t, vm.Linux612, disk, "")
		g.StartNode(t)
		g.Run(t, `
n=0
until [ "$(timeout 2 wget -qO- http://127.0.0.1:8080/starts | grep -c start)" = `+starts+` ]; do n=$((n+1)); [ $n -lt 100 ] || { berth ps -a; tail -n 40 /var/log/node.log; exit 1; }; sleep 0.2; done
for c in client resumed; do
	until [ "$(berth inspect -f '{{.State.Status}}' $c)" = running ]; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.2; done
done`)
		for name, want := range map[string]spec.State{
			"web": spec.Running, "client": spec.Running, "resumed": spec.Running,
			"stopped": spec.Stopped, "once": spec.Stopped, "failing": spec.Stopped, "finished": spec.Stopped, "fresh": spec.Created,
		} {
			if got := inspect(t, g, name).State; got.Status != want {
				t.Errorf("%s: %s is %s, want %s (%+v)", boot, name, got.Status, want, got)
			}
		}
		if s := inspect(t, g, "stopped").State; s.StoppedBy != "user" {
			t.Errorf("%s: stopped by the user: %+v", boot, s)
		}
		if s := inspect(t, g, "finished").State; s.ExitCode != 0 || s.ExitUnknown {
			t.Errorf("%s: ended well before: %+v", boot, s)
		}
		if boot == "power cut" { // nobody saw how it ended
			if s := inspect(t, g, "once").State; s.ExitUnknown != true || s.ExitCode != 255 {
				t.Errorf("an exit code was made up: %+v", s)
			}
		}
		now := inspect(t, g, "web")
		if now.ID != before.ID || len(now.Networks) != 1 || now.Networks[0].IPv4 != before.Networks[0].IPv4 || now.Networks[0].MAC != before.Networks[0].MAC {
			t.Errorf("%s: web was %+v and is %+v", boot, before.Networks, now.Networks)
		}
		if got := cgroupFiles(t, g, "web", "memory.max")["memory.max"]; got != "67108864" {
			t.Errorf("%s: the limit of memory is %q", boot, got)
		}
		logs := g.Run(t, "berth logs web; berth logs once; berth exec web cat /own; berth exec client wget -qO- http://web/starts; berth port web")
		for _, want := range []string{"start 1\n", "start " + starts + "\n", "said before", "mine", "start\nstart", "8080", "5353"} {
			if !strings.Contains(logs, want) {
				t.Errorf("%s: no %q in:\n%s", boot, want, logs)
			}
		}
		if out := g.Run(t, "berth network ls -q -f label=kept=yes --format '{{.Name}}'; berth volume ls -q -f label=kept=yes"); out != "town\ndata" {
			t.Errorf("%s: networks and volumes: %q", boot, out)
		}
		// What was to be removed at its end is gone, its volume too.
		g.Run(t, `
n=0
while berth inspect passing >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 60 ] || { berth inspect passing; tail -n 30 /var/log/node.log; exit 1; }; sleep 0.5; done
[ "$(berth volume ls -q)" = data ] || { berth volume inspect $(berth volume ls -q); tail -n 30 /var/log/node.log; exit 1; }`)
	}
	g.Off(t)
	check("2")
	boot = "power cut"
	g.Run(t, "berth start once failing; berth run -d --rm --name passing -v /anonymous busybox sleep 100000")
	g.PowerCut()
	check("3")
	g.Run(t, "berth rm -f $(berth ps -aq) && berth volume rm data && berth network rm town")
	g.Off(t)
}
