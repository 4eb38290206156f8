package oci

import (
	"os"
	"path/filepath"
	"testing"
)

// CRIU joins what the spec names of namespaces that runtimes leave to it, and
// is configured as ever besides.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	usual := write("usual.conf", "skip-mnt /a")
	write("config.json", `{"annotations": {"a": "b", "org.criu.config": "`+usual+`"}, "linux": {"namespaces": [
		{"type": "pid"}, {"type": "network", "path": "/net"}, {"type": "ipc", "path": "/run/ipc"}, {"type": "uts", "path": "/proc/self/ns/uts"}]}}`)
	c, err := readConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	j, err := c.join(&program{name: "runc"})
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "criu.conf")
	if text, _ := os.ReadFile(conf); string(text) != "skip-mnt /a\ntcp-close\njoin-ns ipc:/run/ipc\njoin-ns uts:/proc/self/ns/uts\n" {
		t.Errorf("%s", text)
	}
	if c, err = readConfig(dir); err != nil || string(c.fields["annotations"]) != `{"a":"b","org.criu.config":"`+conf+`"}` {
		t.Errorf("%s, %v", c.fields["annotations"], err)
	}
	name, _ := os.Hostname()
	if err := j.settle(); err != nil || j.host[0] != name {
		t.Errorf("%q, %v", j.host, err)
	}
	if text, _ := os.ReadFile(conf); string(text) != "skip-mnt /a" {
		t.Errorf("afterwards: %s", text)
	}
	if j, err := c.join(&program{foreign: true}); j != nil || err != nil || j.settle() != nil {
		t.Errorf("of a program without CRIU: %v, %v", j, err)
	}
}

func TestCRIUFailure(t *testing.T) {
	log := filepath.Join(t.TempDir(), "dump.log")
	for text, want := range map[string][2]string{
		"": {},
		"(00.1) Running\n(00.2) Error (criu/util.c:642): exited, status=1\n(00.3) Error (criu/a.c:1): one\n(00.4)   1: Error (criu/a.c:2): two\n": {
			"", "Error (criu/a.c:1): one; Error (criu/a.c:2): two",
		},
		"Error (criu/util.c:627): execvp(\"iptables-restore\", ...) failed: No such file or directory\n(00.4) Error (criu/net.c:3): Locking failed\n": {"iptables-restore", ""},
	} {
		if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if lacks, said := criuFailure(log); lacks != want[0] || said != want[1] {
			t.Errorf("%q: %q, %q", text, lacks, said)
		}
	}
	if lacks, said := criuFailure(log + "x"); lacks != "" || said != "" {
		t.Error("of no log", lacks, said)
	}
}
