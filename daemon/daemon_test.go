package daemon

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/base/errs"
)

func TestTracesURL(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://localhost:4318":            "http://localhost:4318/v1/traces",
		"http://localhost:4318/":           "http://localhost:4318/v1/traces",
		"https://example.org/otlp/v1/here": "https://example.org/otlp/v1/here",
	} {
		if got := tracesURL(endpoint); got != want {
			t.Errorf("tracesURL(%q) = %q, want %q", endpoint, got, want)
		}
	}
}

func TestConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	write("root = \"/srv/b\"\nlog_level = \"debug\"\n[runtimes.runsc]\nargs = [\"--platform=ptrace\"]\n")
	c, err := NodeConfig{ConfigFile: file, LogLevel: "warn", State: "/tmp/s"}.withFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/srv/b" || c.LogLevel != "warn" || c.Socket != "/tmp/s/berth.sock" || c.Runtimes["runsc"].Args[0] != "--platform=ptrace" {
		t.Errorf("read %+v", c)
	}

	for text, says := range map[string]string{"rot = 1": "rot", "root = 1": "root", "root": "root", "[registry]\nblobs = \"some\"": "until-pushed", "[storage]\nscrub_days = -1": "scrub_days"} {
		write(text)
		_, err := NodeConfig{ConfigFile: file}.withFile()
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want an invalid that shows %q", text, err, says)
		}
	}
	if _, err := (NodeConfig{ConfigFile: file + ".not"}).withFile(); !errors.Is(err, errs.Invalid) {
		t.Errorf("a named file that is missing: %v", err)
	}
}

func TestPools(t *testing.T) {
	pools, err := NetworkDefaults{Pools: []string{"10.9.0.0/16", "10.8.1.0/16:20"}}.pools()
	if err != nil || len(pools) != 2 || pools[0].Size != 24 || pools[1].Size != 20 || pools[1].Base.String() != "10.8.0.0/16" {
		t.Errorf("%v, %v", pools, err)
	}
	for _, bad := range []string{"", "10.9", "10.9.0.0/16:8", "10.9.0.0/16:x", "10.9.0.0/16:31"} {
		if _, err := (NetworkDefaults{Pools: []string{bad}}).pools(); !errors.Is(err, errs.Invalid) {
			t.Errorf("pool %q: %v", bad, err)
		}
	}
}

func TestOneClaimOnAStateFolder(t *testing.T) {
	dir := t.TempDir()
	release, err := claim(dir, "node")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim(dir, "node"); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "--state") {
		t.Errorf("second claim: %v, want a conflict that says what to do", err)
	}
	release()
	again, err := claim(dir, "node")
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again()
}

func TestListenReplacesADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.sock")
	for range 2 {
		l, err := listen(t.Context(), path, "no-such-group", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("%v, %v: want rights 0660", info.Mode(), err)
		}
		_ = l.Close()
	}
	if _, err := listen(t.Context(), "/tmp/"+strings.Repeat("x", 120), "", slog.New(slog.DiscardHandler)); !errors.Is(err, errs.Invalid) {
		t.Errorf("an endless path: %v", err)
	}
}
