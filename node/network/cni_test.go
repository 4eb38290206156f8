package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/spec"
)

// fakePlugin notes what it is told and answers ADD with an address.
const fakePlugin = `#!/bin/sh
dir=$(dirname "$0")
stdin=$(cat)
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0;;
esac
echo "$CNI_COMMAND $CNI_IFNAME $CNI_CONTAINERID $stdin" >> "$dir/calls"
if [ -e "$dir/fail" ] && [ $CNI_COMMAND = ADD ]; then echo '{"code":7,"msg":"no cable"}'; exit 1; fi
if [ -e "$dir/stuck" ] && [ $CNI_COMMAND = DEL ]; then echo '{"code":7,"msg":"stuck"}'; exit 1; fi
if [ $CNI_COMMAND = ADD ]; then
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","mac":"02:00:00:00:00:01","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.99.0.5/24","gateway":"10.99.0.1","interface":0}]}'
fi
`

func withCNI(t *testing.T, m *machine, confs map[string]string) func(*Config) {
	t.Helper()
	conf, bin := filepath.Join(m.dir, "net.d"), filepath.Join(m.dir, "bin")
	must(t, os.MkdirAll(conf, 0o755))
	must(t, os.MkdirAll(bin, 0o755))
	for name, text := range confs {
		write(t, filepath.Join(conf, name), text)
	}
	must(t, os.WriteFile(filepath.Join(bin, "fake"), []byte(fakePlugin), 0o755))
	return func(c *Config) { c.CNIConfDir, c.CNIBinDir = conf, bin+":/usr/lib/cni:/opt/cni/bin" }
}

func TestCNI(t *testing.T) {
	m := newMachine(t)
	use := withCNI(t, m, map[string]string{
		"10-cable.conflist": `{"cniVersion":"1.0.0","name":"cable","plugins":[{"type":"fake","capabilities":{"portMappings":true,"ips":true}}]}`,
		"20-plain.conf":     `{"cniVersion":"1.0.0","name":"plain","type":"fake"}`,
		"30-broken.conf":    `{`,
	})
	s := m.open(t, use)
	calls := func() string {
		b, _ := os.ReadFile(filepath.Join(m.dir, "bin", "calls"))
		return string(b)
	}
	list, err := s.List(spec.Filter{"driver": {"cni"}})
	must(t, err)
	if len(list) != 2 || list[0].Config.Name != "cable" {
		t.Fatalf("CNI networks: %+v", list)
	}
	// With a configuration given, it is what containers get.
	b := m.box(t, s, "b", spec.NetworkChoice{Ports: []spec.PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	e := b.Endpoints[0]
	equal(t, "endpoint", []string{e.Network, e.IPv4, e.Gateway4, e.MAC, e.Interface}, []string{"cable", "10.99.0.5/24", "10.99.0.1", "02:00:00:00:00:01", "eth0"})
	if got := calls(); !strings.Contains(got, "ADD eth0 "+b.id) || !strings.Contains(got, `"hostPort":8080`) {
		t.Errorf("the plugin was told %s", got)
	}
	again, err := s.Attach(t.Context(), AttachRequest{Container: b.id, Name: "b", Namespace: b.ns})
	must(t, err)
	equal(t, "attached again", again, b.Attachment)
	if got := calls(); !strings.Contains(got, "CHECK eth0") || strings.Count(got, "ADD") != 1 {
		t.Errorf("the plugin was told %s", got)
	}
	_, err = s.Attach(t.Context(), m.request(t, s, "c", spec.NetworkChoice{Mode: "plain", Ports: []spec.PortMapping{{ContainerPort: 80}}}))
	wantKind(t, err, errs.Unsupported, "publishes ports")
	_, err = s.Connect(t.Context(), AttachRequest{Container: b.id, Name: "b", Namespace: b.ns}, spec.EndpointConfig{Network: list[1].ID[:12]})
	must(t, err)
	must(t, s.Disconnect(t.Context(), b.id, "plain"))
	if got := calls(); !strings.Contains(got, "DEL eth1") {
		t.Errorf("the plugin was told %s", got)
	}
	wantKind(t, s.Remove(t.Context(), "cable"), errs.Unsupported, "file")

	// DEL works when the configuration is gone, after a restart too.
	must(t, os.Remove(filepath.Join(m.dir, "net.d", "10-cable.conflist")))
	closeSet(t, s)
	s = m.open(t, use)
	must(t, s.Detach(t.Context(), b.id))
	if got := calls(); !strings.Contains(got, "DEL eth0 "+b.id) {
		t.Errorf("the plugin was told %s", got)
	}

	write(t, filepath.Join(m.dir, "bin", "fail"), "")
	_, err = s.Attach(t.Context(), m.request(t, s, "d", spec.NetworkChoice{Mode: "plain"}))
	if err == nil || !strings.Contains(err.Error(), "no cable") {
		t.Errorf("failing plugin: %v", err)
	}
	equal(t, "claims", len(s.Claims()), 0)

	// What its DEL could not take back either is on record, and is no attachment.
	write(t, filepath.Join(m.dir, "bin", "stuck"), "")
	req := m.request(t, s, "e", spec.NetworkChoice{Mode: "plain"})
	_, err = s.Attach(t.Context(), req)
	wantKind(t, err, errs.Internal, "stuck")
	closeSet(t, s)
	s = m.open(t, use)
	must(t, os.Remove(filepath.Join(m.dir, "bin", "fail")))
	wantKind(t, s.Detach(t.Context(), req.Container), errs.Internal, "stuck")
	must(t, os.Remove(filepath.Join(m.dir, "bin", "stuck")))
	_, err = s.Attach(t.Context(), req)
	must(t, err)
	equal(t, "DELs before it was attached", strings.Count(calls(), "DEL eth0 "+req.Container), 3)
	must(t, s.Detach(t.Context(), req.Container))
	equal(t, "claims", len(s.Claims()), 0)
}

// The plugins that Debian has.
func TestCNIPlugins(t *testing.T) {
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("needs Debian's containernetworking-plugins")
	}
	m := newMachine(t)
	s := m.open(t, withCNI(t, m, map[string]string{
		"10-real.conflist": `{"cniVersion":"0.4.0","name":"real","plugins":[{"type":"bridge","bridge":"cni9","isGateway":true,"ipam":{"type":"host-local","dataDir":"` + m.dir + `/ipam","subnet":"10.99.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]}`,
	}))
	a, b := m.box(t, s, "a", spec.NetworkChoice{}), m.box(t, s, "b", spec.NetworkChoice{Mode: "real"})
	echo(t, a.ns, "tcp", 80)
	equal(t, "seen as", reaches(t, "by CNI", b.ns, "tcp", a.addr4()+":80"), b.addr4())
	closeSet(t, s)
	s = m.open(t, func(c *Config) { c.CNIConfDir, c.CNIBinDir = filepath.Join(m.dir, "net.d"), "/usr/lib/cni" })
	must(t, s.RemoveNamespace(t.Context(), a.id))
	must(t, s.Reconcile(t.Context(), nil))
	left, err := filepath.Glob(m.dir + "/ipam/real/10.*")
	must(t, err)
	equal(t, "addresses left", len(left), 0)
}
