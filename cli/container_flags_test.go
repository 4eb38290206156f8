package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// configOf is what the flags of run ask for, as JSON.
func configOf(t *testing.T, args ...string) (string, error) {
	t.Helper()
	f := &containerFlags{}
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.add(flags)
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	config, err := f.config(flags, flags.Args())
	if err != nil {
		return "", err
	}
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data) + "\n", nil
}

// golden compares with a file of testdata, which UPDATE=1 writes anew.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (UPDATE=1 writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (UPDATE=1 writes it anew):\n got %s\nwant %s", name, got, want)
	}
}

func TestEveryFlagOfRun(t *testing.T) {
	var got string
	t.Run("read", func(t *testing.T) { got = everyFlag(t) })
	golden(t, "run-every-flag.json", got)
}

// everyFlag reads a line with all flags, in a folder with what they name.
func everyFlag(t *testing.T) string {
	t.Setenv("TAKEN", "over")
	dir := t.TempDir()
	t.Chdir(dir)
	for name, content := range map[string]string{"vars": "A=1\nTAKEN\n", "labels": "from=file\n", "seccomp.json": `{"defaultAction":"SCMP_ACT_ALLOW"}`} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := configOf(t, strings.Fields(`--name web --platform linux/arm64 -i -t --rm --init --runtime crun
		-e B=2 -e TAKEN --env-file vars -l team=a --label key --label-file labels --annotation x=y
		-u ann:staff --group-add 7 --group-add audio -w /srv -h host --domainname example.org --entrypoint /bin/tool
		--stop-signal INT --stop-timeout 0 --restart no --log-opt max-size=1m --log-opt max-file=2 --log-driver local
		-m 64m --memory-reservation 32m --memory-swap -1 --cpus 1.5 -c 512 --cpu-period 1000 --cpu-quota 500
		--cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit -1 --blkio-weight 100 --oom-kill-disable --oom-score-adj -5
		--device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2mb --device-read-iops /dev/sda:3 --device-write-iops /dev/sda:4
		--privileged --cap-add NET_ADMIN --cap-drop ALL --security-opt no-new-privileges --security-opt seccomp=seccomp.json
		--security-opt unmask=all --read-only --userns host --pid host --ipc host --uts host --cgroupns private --cgroup-parent /box
		--sysctl net.ipv4.ip_forward=1 --ulimit nofile=10:20 --device /dev/fuse --shm-size 128m
		-v data:/data -v ./site:/site:ro --mount type=bind,src=/a,dst=/b --tmpfs /run:size=1m
		--network name=lab,alias=x --network other --network-alias y --ip 10.0.0.2 --ip6 fd00::2 --mac-address 92:d0:c6:0a:29:33
		-p 8080:80 -p [::1]:53:53/udp -P --expose 99 --dns 1.1.1.1 --dns-search lan --dns-option ndots:1 --add-host db:10.0.0.9
		--health-cmd true --health-interval 5s --health-timeout 1s --health-start-period 9s --health-start-interval 2s --health-retries 4
		alpine sh -c -x --rm`)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(got, dir, "/here")
}

func TestRunConfigs(t *testing.T) {
	for line, want := range map[string][]string{
		"alpine":                                 {`"image": "alpine"`, `"restart": {`},
		"--entrypoint= alpine":                   {`"entrypoint": []`},
		"--no-healthcheck alpine":                {`"NONE"`},
		"--health-retries 2 alpine":              {`"retries": 2`, `"test": null`},
		"--network host alpine":                  {`"mode": "host"`},
		"--net none alpine":                      {`"mode": "none"`},
		"--network container:web alpine":         {`"mode": "container:web"`},
		"--network bridge alpine":                {`"mode": "bridge"`},
		"--ip 10.0.0.2 alpine":                   {`"network": "bridge"`, `"ipv4": "10.0.0.2"`},
		"--network default --ip 10.0.0.2 alpine": {`"network": "bridge"`},
		"--ipc private alpine":                   {`"image": "alpine"`},
		"--restart on-failure:3 alpine":          {`"name": "on-failure"`, `"maxRetries": 3`},
		"alpine --rm -d":                         {`"--rm"`, `"-d"`},
	} {
		got, err := configOf(t, strings.Fields(line)...)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		for _, part := range want {
			if !strings.Contains(got, part) {
				t.Errorf("%s: no %s in %s", line, part, got)
			}
		}
		for _, never := range []string{`"ipcMode"`, `"autoRemove"`, `"stopTimeout"`} {
			if strings.Contains(got, never) {
				t.Errorf("%s: %s in %s", line, never, got)
			}
		}
	}
}

// All that docker run takes and this machine can do is taken here too.
func TestFlagsOfDocker(t *testing.T) {
	cmd := (&program{}).run()
	for name := range strings.FieldsSeq(`add-host annotation attach blkio-weight cap-add cap-drop cgroup-parent cgroupns cidfile
		cpu-period cpu-quota cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device device-read-bps device-read-iops
		device-write-bps device-write-iops dns dns-option dns-search domainname entrypoint env env-file expose group-add
		health-cmd health-interval health-retries health-start-interval health-start-period health-timeout hostname init
		interactive ip ip6 ipc label label-file log-driver log-opt mac-address memory memory-reservation memory-swap mount name
		network network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit platform privileged publish
		publish-all pull quiet read-only restart rm runtime security-opt shm-size sig-proxy stop-signal stop-timeout sysctl
		tmpfs tty ulimit user userns uts volume workdir`) {
		if cmd.Flags().Lookup(name) == nil {
			t.Errorf("run does not take --%s", name)
		}
	}
	for short, name := range map[string]string{
		"a": "attach", "c": "cpu-shares", "d": "detach", "e": "env", "h": "hostname", "i": "interactive", "l": "label", "m": "memory",
		"p": "publish", "P": "publish-all", "q": "quiet", "t": "tty", "u": "user", "v": "volume", "w": "workdir",
	} {
		if flag := cmd.Flags().ShorthandLookup(short); flag == nil || flag.Name != name {
			t.Errorf("-%s is not --%s", short, name)
		}
	}
}
