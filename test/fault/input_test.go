package fault

import (
	"net"
	"strings"
	"testing"

	"berth/test/machine"
)

func TestBadCommands(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.inventory(t)
	for _, c := range []struct {
		code  int
		words string
		args  string
	}{
		{127, "no-such-command", "run --rm IMAGE no-such-command"},
		{126, "permission denied", "run --rm IMAGE /etc/passwd"},
		{126, "", "run --rm IMAGE /etc"},
		{125, "nobody-knows-me", "run --rm -u nobody-knows-me IMAGE true"},
		{125, "no-such-group", "run --rm --group-add no-such-group IMAGE true"},
		{125, "no-such-net", "run --rm --network no-such-net IMAGE true"},
		{125, "/no/such/source", "run --rm --mount type=bind,source=/no/such/source,target=/x IMAGE true"},
		{125, "no-such-runtime", "run --rm --runtime no-such-runtime IMAGE true"},
		{125, "no-such-host-device", "run --rm --device /dev/no-such-host-device IMAGE true"},
		{125, "no such container", "run --rm --network container:not-there IMAGE true"},
		{125, "lots", "run --rm -m lots IMAGE true"},
		{125, "-5m", "run --rm -m -5m IMAGE true"},
		{125, "cpus", "run --rm --cpus many IMAGE true"},
		{125, "99999", "run --rm -p 99999:80 IMAGE true"},
		{125, "port", "run --rm -p 80:80:80:80 IMAGE true"},
		{125, "name", "run --rm --name a/b IMAGE true"},
		{125, "restart", "run -d --restart sometimes IMAGE true"},
		{125, "nofile", "run --rm --ulimit nofile=10:5 IMAGE true"},
		{125, "ulimit", "run --rm --ulimit no-such-limit=10 IMAGE true"},
		{125, "cap", "run --rm --cap-add NO_SUCH_CAP IMAGE true"},
		{125, "sysctl", "run --rm --sysctl kernel.no.such=1 IMAGE true"},
		{125, "relative", "run --rm -v x:relative/target IMAGE true"},
		{125, "cidfile", "run --rm --cidfile /etc/passwd IMAGE true"},
		{125, "no-such-image", "run --rm --pull never no-such-image:1 true"},
		{125, "lower", "run --rm case/UPPER true"},
		{1, "no such container", "stop not-there"},
		{1, "no such container", "exec not-there true"},
		{1, "no image not-there", "rmi not-there"},
		{1, "no volume \"not-there\"", "volume rm not-there"},
		{1, "no such network", "network rm not-there"},
	} {
		n.fails(t, c.code, c.words, strings.Fields(strings.ReplaceAll(c.args, "IMAGE", image))...)
	}
	n.works(t)
	n.same(t, before)
}

func TestTaken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	outside, err := net.Listen("tcp", "0.0.0.0:0")
	machine.Must(t, err)
	defer outside.Close()
	_, taken, _ := net.SplitHostPort(outside.Addr().String())
	free, err := net.Listen("tcp", "0.0.0.0:0")
	machine.Must(t, err)
	_, port, _ := net.SplitHostPort(free.Addr().String())
	machine.Must(t, free.Close())

	n.sleeper(t, "first", "-p", port+":80")
	before := n.inventory(t)
	n.fails(t, 125, "first", "run", "-d", "--name", "first", image, "true")
	n.fails(t, 1, "first", "create", "--name", "first", image, "true")
	n.fails(t, 125, taken, "run", "--rm", "-p", taken+":80", image, "true")
	n.fails(t, 125, port, "run", "--rm", "-p", port+":80", image, "true")
	n.same(t, before)

	// One that was made all the same starts when the port is free.
	n.ok(t, "create", "--name", "second", "-p", taken+":80", image, "sleep", "1000")
	n.fails(t, 1, taken, "start", "second")
	machine.Must(t, outside.Close())
	n.ok(t, "start", "second")
	n.ok(t, "rm", "-f", "second")
	n.same(t, before)
}
