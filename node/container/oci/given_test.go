package oci_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/spec"
	"berth/test/machine"
)

func opaque(t *testing.T, o *options.Options) *spec.Opaque {
	t.Helper()
	data, err := proto.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return &spec.Opaque{Type: "containerd.runc.v1.Options", Value: data}
}

// config reads what the program is given.
func configOf(t *testing.T, dir string) (s specs.Spec) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// edit changes a bundle as a client might have written it.
func edit(t *testing.T, dir string, change func(map[string]any)) {
	t.Helper()
	file := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(file)
	config := map[string]any{}
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err == nil {
		change(config)
		data, err = json.Marshal(config)
	}
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A spec of a later version, with fields that nobody knows and no cgroup, runs
// as it is: only the version and the cgroup are written anew.
func TestForeignSpec(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		for _, cgroup := range []any{nil, "", machine.Name() + "-relative/x", "/" + machine.Name() + "-abs/x"} {
			l := b.make(command("sleep", "1000"))
			edit(t, l.Bundle, func(config map[string]any) {
				config["ociVersion"], config["future"] = "1.3.0", map[string]any{"a": []int{1}}
				linux := config["linux"].(map[string]any)
				if delete(linux, "cgroupsPath"); cgroup != nil {
					linux["cgroupsPath"] = cgroup
				}
			})
			p := b.run(l)
			got := configOf(t, l.Bundle).Linux.CgroupsPath
			want := "/berth/" + l.ID
			if asked, ok := cgroup.(string); ok && asked != "" {
				want = "/" + strings.TrimPrefix(asked, "/")
			}
			if got != want {
				t.Errorf("%v became cgroup %q", cgroup, got)
			}
			if groups, _ := os.ReadFile("/proc/" + itoa(p.Pid) + "/cgroup"); !strings.Contains(string(groups), ":"+want+"\n") {
				t.Errorf("%v: it is in\n%s", cgroup, groups)
			}
			if data, _ := os.ReadFile(filepath.Join(l.Bundle, "config.json")); !strings.Contains(string(data), `"future":{"a":[1]}`) {
				t.Errorf("an unknown field is lost: %s", data)
			}
			if pids, err := b.runtime.Pids(t.Context(), l.ID); err != nil || len(pids) != 1 {
				t.Errorf("pids %v, %v", pids, err)
			}
			if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
				t.Error(err)
			}
			if exists("/sys/fs/cgroup/pids"+want) || exists("/sys/fs/cgroup"+want) {
				t.Errorf("cgroup %s is left", want)
			}
		}
		l := b.make(command("true"), func(s *specs.Spec) { s.Linux.CgroupsPath = "/.." })
		if _, err := b.runtime.Run(t.Context(), l); !errors.Is(err, errs.Invalid) {
			t.Errorf("in the root of all cgroups: %v", err)
		}
		b.nothingLeft(l.ID)
		l = b.make(command("true"))
		if err := os.WriteFile(filepath.Join(l.Bundle, "config.json"), []byte(`{"ociVersion":`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.runtime.Run(t.Context(), l); !errors.Is(err, errs.Invalid) {
			t.Errorf("a garbled spec: %v", err)
		}
		b.nothingLeft(l.ID)
	})
}

// A container in a cgroup that others are in, or have theirs below, does not
// take them along.
func TestSharedCgroup(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		outer := "/" + machine.Name() + "-outer"
		in := func(cgroup string) container.Launch {
			l := b.make(command("sleep", "1000"), func(s *specs.Spec) { s.Linux.CgroupsPath = cgroup })
			b.run(l)
			return l
		}
		first, below := in(outer), in(outer+"/below")
		if pids, err := b.runtime.Pids(t.Context(), first.ID); err != nil || len(pids) != 1 {
			t.Errorf("pids %v, %v", pids, err)
		}
		if err := b.runtime.Signal(t.Context(), first.ID, syscall.SIGKILL, true); err != nil {
			t.Error(err)
		}
		b.keeper.exit(first.ID)
		if err := b.runtime.Delete(t.Context(), first.ID); err != nil {
			t.Error(err)
		}
		if pids, err := b.runtime.Pids(t.Context(), below.ID); err != nil || len(pids) != 1 {
			t.Errorf("the other has pids %v, %v", pids, err)
		}
		if b.runtime.Name() == "crun" { // runc takes no cgroup that has processes
			same := in(outer + "/below")
			if err := b.runtime.Delete(t.Context(), same.ID); err != nil {
				t.Error(err)
			}
			if code, _ := b.keeper.exit(same.ID); code != 137 {
				t.Errorf("exit %d", code)
			}
			if pids, err := b.runtime.Pids(t.Context(), below.ID); err != nil || len(pids) != 1 {
				t.Errorf("of the other are left %v, %v", pids, err)
			}
		}
		if err := b.runtime.Delete(t.Context(), below.ID); err != nil {
			t.Error(err)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*" + outer, "/sys/fs/cgroup" + outer} {
			left, _ := filepath.Glob(pattern)
			for _, dir := range left {
				_ = os.Remove(dir)
			}
		}
	})
}

// Start runs no program where there are no hooks, and the program takes the
// container for running after it.
func TestStartDirectly(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(command("sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.01; done"))
		if _, err := b.runtime.Create(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		moved := filepath.Join(b.dir, "runtime", b.runtime.Name())
		if err := b.runtime.Start(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		if exists(filepath.Join(moved, l.ID, "exec.fifo")) {
			t.Error("it is still taken for created")
		}
		if state := b.state(l.ID); state != "running" {
			t.Errorf("state %s", state)
		}
		if err := b.runtime.Start(t.Context(), l.ID); err == nil {
			t.Error("started twice")
		}

		l = b.make(command("true"))
		if _, err := b.runtime.Create(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if err := b.runtime.Signal(t.Context(), l.ID, syscall.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
		b.keeper.exit(l.ID)
		if err := b.runtime.Start(t.Context(), l.ID); err == nil {
			t.Error("a process that was killed was started")
		}

		hook := filepath.Join(b.dir, "hook")
		l = b.make(command("sleep", "1000"), func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{
				Poststart: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + hook + "-poststart"}}},
				Poststop:  []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + hook + "-poststop"}}},
			}
		})
		if _, err := b.runtime.Create(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if err := b.runtime.Start(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"-poststart", "-poststop"} {
			if !exists(hook + name) {
				t.Errorf("no hook has made %s", name)
			}
		}
	})
}

func TestOptions(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		other := map[string]string{"runc": "crun", "crun": "runc"}[b.runtime.Name()]
		path, err := exec.LookPath(other)
		if err != nil {
			t.Skipf("needs %s", other)
		}
		for what, o := range map[string]*options.Options{
			"nothing": {}, "its own name": {BinaryName: b.runtime.Name()}, "a name": {BinaryName: other}, "a path": {BinaryName: path},
			"a root": {Root: filepath.Join(b.dir, "records"), NoPivotRoot: true, NoNewKeyring: true, IoUid: 1000, IoGid: 1000},
		} {
			l := b.make(command("sleep", "1000"))
			l.Options, l.Namespace = opaque(t, o), "space"
			if _, err := b.runtime.Create(t.Context(), l); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			records := filepath.Join(b.dir, "runtime", b.runtime.Name(), l.ID)
			if strings.HasPrefix(what, "a ") {
				records = filepath.Join(b.dir, "runtime", other, l.ID)
			}
			if o.Root != "" {
				records = filepath.Join(o.Root, "space", l.ID)
			}
			if !exists(records) {
				t.Errorf("%s: no records in %s", what, records)
			}
			// Another node, which has to find out what was chosen.
			again, err := oci.New(oci.Config{Name: b.runtime.Name(), State: filepath.Join(b.dir, "runtime"), Keeper: b.keeper})
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Start(t.Context(), l.ID); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			id := newID()
			p, err := again.Exec(t.Context(), container.ExecLaunch{ID: id, Container: l.ID, Process: process("echo", "inside")})
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if out, _ := io.ReadAll(p.Stdout); string(out) != "inside\n" {
				t.Errorf("%s: %q", what, out)
			}
			if err := again.Delete(t.Context(), l.ID); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if exists(records) {
				t.Errorf("%s: %s is left", what, records)
			}
			b.nothingLeft(l.ID)
		}
		for what, tt := range map[string]struct {
			options *spec.Opaque
			kind    errs.Kind
		}{
			"a missing program":    {opaque(t, &options.Options{BinaryName: "/no/such/runc"}), errs.NotFound},
			"a name that is none":  {opaque(t, &options.Options{BinaryName: "/bin/."}), errs.Invalid},
			"a shim's cgroup":      {opaque(t, &options.Options{ShimCgroup: "/x"}), errs.Unsupported},
			"a shim's address":     {opaque(t, &options.Options{TaskApiAddress: "unix:///x"}), errs.Unsupported}, //nolint:staticcheck // clients may still send it
			"a relative root":      {opaque(t, &options.Options{Root: "x"}), errs.Invalid},
			"another message":      {&spec.Opaque{Type: "types.x/runtimeoptions.v1.Options", Value: []byte{8, 1}}, errs.Invalid},
			"no message":           {&spec.Opaque{Type: "containerd.runc.v1.Options", Value: []byte("\xff\xff")}, errs.Invalid},
			"what nobody knows":    {&spec.Opaque{Type: "containerd.runc.v1.Options", Value: []byte{0xa0, 0x06, 1}}, errs.Unsupported},
			"a missing checkpoint": {opaque(t, &options.Options{CriuImagePath: "/no/such/image"}), errs.NotFound},
		} {
			l := b.make(command("true"))
			l.Options = tt.options
			if _, err := b.runtime.Create(t.Context(), l); !errors.Is(err, tt.kind) {
				t.Errorf("%s: %v (%s)", what, err, errs.KindOf(err))
			}
			b.nothingLeft(l.ID)
		}
		if _, err := os.Stat("/run/systemd/system"); err != nil {
			l := b.make(command("true"))
			l.Options = opaque(t, &options.Options{SystemdCgroup: true})
			if _, err := b.runtime.Create(t.Context(), l); !errors.Is(err, errs.Unsupported) {
				t.Errorf("a cgroup by systemd: %v", err)
			}
		}
	})
}

// The streams that a client names reach the keeper, as does who it is.
func TestStreams(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		fifo := filepath.Join(b.dir, "out")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		l := b.make(command("sleep", "1000"))
		l.Streams, l.Name, l.Namespace = &container.Streams{Stdin: "i", Stdout: fifo, Stderr: "e"}, "web", "space"
		l.Options = opaque(t, &options.Options{IoUid: 7, IoGid: 8})
		p := b.run(l)
		if got := *b.keeper.processes[l.ID].streams; got.Stdin != "i" || got.Stdout != fifo || got.Stderr != "e" || got.Name != "web" || got.Namespace != "space" || got.UID != 7 || got.GID != 8 {
			t.Errorf("streams %+v", got)
		}
		if p.Stdin != nil || p.Stdout != nil || p.CloseStdin == nil {
			t.Errorf("process %+v", p)
		}
		id := newID()
		if _, err := b.runtime.Exec(t.Context(), container.ExecLaunch{
			ID: id, Container: l.ID, Process: process("true"), Streams: &container.Streams{Stdout: "o"}, Namespace: "space",
		}); err != nil {
			t.Fatal(err)
		}
		if got := *b.keeper.processes[id].streams; got.Stdout != "o" || got.Name != id || got.UID != 7 {
			t.Errorf("streams of an exec %+v", got)
		}
	})
}

// A program knows a container by its client's id, in records of its namespace:
// so do the hooks that it runs.
func TestNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		told := filepath.Join(b.dir, "told")
		var all []container.Launch
		for _, space := range []string{"one", "two"} {
			l := b.make(command("sleep", "1000"), func(s *specs.Spec) {
				s.Linux.CgroupsPath = "/" + machine.Name() + "-" + space + "/web"
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >>" + told}}}}
			})
			l.ID, l.Name, l.Namespace = space+"+web", "web", space
			if _, err := b.runtime.Create(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
		}
		if said, _ := os.ReadFile(told); strings.Count(strings.ReplaceAll(string(said), " ", ""), `"id":"web"`) != 2 {
			t.Errorf("hooks were told %s", said)
		}
		for _, l := range all {
			if !exists(filepath.Join(b.dir, "runtime", b.runtime.Name()+"+"+l.Namespace, "web")) {
				t.Errorf("no records of %s", l.ID)
			}
			if err := b.runtime.Start(t.Context(), l.ID); err != nil {
				t.Error(err)
			}
			id := newID()
			p, err := b.runtime.Exec(t.Context(), container.ExecLaunch{ID: id, Container: l.ID, Process: process("echo", "inside")})
			if err != nil {
				t.Fatal(err)
			}
			if out, _ := io.ReadAll(p.Stdout); string(out) != "inside\n" {
				t.Errorf("%q", out)
			}
			limits, err := bundle.Resources(spec.Resources{Pids: 50}, b.host)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.runtime.Update(t.Context(), l.ID, limits); err != nil {
				t.Error(err)
			}
			if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
				t.Error(err)
			}
			b.keeper.exit(l.ID)
			if exists(filepath.Join(b.dir, "runtime", b.runtime.Name()+"+"+l.Namespace, "web")) || exists(filepath.Join(b.dir, "runtime", ".choice", l.ID)) {
				t.Errorf("something of %s is left", l.ID)
			}
		}
		for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
			for _, space := range []string{"one", "two"} {
				left, _ := filepath.Glob(pattern + machine.Name() + "-" + space)
				for _, dir := range left {
					_ = os.Remove(dir)
				}
			}
		}
	})
}

// recorder is a program that is the runtime it stands for, but for checkpoints:
// those it writes down, and it runs the container anew for a restore.
const recorder = `#!/bin/sh
for a in "$@"; do case $a in
checkpoint) echo "$@" >>$0.log; touch $0.image; exit 0;;
restore) echo "$@" >>$0.log
	nsenter --uts=NAMESPACE hostname as-it-was
	new=
	skip=
	for b in "$@"; do
		if [ -n "$skip" ]; then skip=; continue; fi
		case $b in restore) new="$new run";; --image-path|--work-path) skip=1;; *) new="$new $b";; esac
	done
	exec RUNTIME $new;;
esac; done
exec RUNTIME "$@"
`

func TestCheckpoint(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		path, err := exec.LookPath(b.runtime.Name())
		if err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(b.dir, b.runtime.Name()+"-criu")
		image := filepath.Join(b.dir, "image")
		l := b.make(command("sleep", "1000"))
		uts := fmt.Sprintf("/proc/%d/ns/uts", b.run(l).Pid)
		host := func() string {
			name, err := exec.Command("nsenter", "--uts="+uts, "hostname").Output() //nolint:gosec // a test's own
			if err != nil {
				t.Fatal(err)
			}
			return string(name)
		}
		before := host()
		if err := os.WriteFile(program, []byte(strings.NewReplacer("RUNTIME", path, "NAMESPACE", uts).Replace(recorder)), 0o700); err != nil {
			t.Fatal(err)
		}
		l = b.make(command("sleep", "1000"))
		l.Options = opaque(t, &options.Options{BinaryName: program})
		b.run(l)
		if err := b.runtime.Checkpoint(t.Context(), l.ID, container.Checkpoint{
			Image: image, Work: b.dir + "/work", Parent: "../parent", OpenTCP: true, FileLocks: true, Terminal: true, ExternalUnixSockets: true, EmptyNamespaces: []string{"network"},
		}); err != nil {
			t.Fatal(err)
		}
		said, _ := os.ReadFile(program + ".log")
		for _, want := range []string{"--image-path " + image, "--work-path " + b.dir + "/work", "--parent-path ../parent", "--tcp-established", "--file-locks", "--shell-job", "--ext-unix-sk", "--leave-running", "--empty-ns network", l.ID} {
			if !strings.Contains(string(said), want) {
				t.Errorf("%s lacks %s", said, want)
			}
		}
		again := b.make(command("sh", "-c", "while :; do echo x >>/tmp/alive; sleep 0.01; done"), func(s *specs.Spec) {
			s.Hostname = ""
			for i := range s.Linux.Namespaces {
				if ns := &s.Linux.Namespaces[i]; ns.Type == specs.UTSNamespace {
					ns.Path = uts
				}
			}
		})
		again.Options = opaque(t, &options.Options{BinaryName: program, CriuWorkPath: b.dir + "/work"})
		again.Restore = image
		if _, err := b.runtime.Create(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		if after := host(); after != before { // CRIU puts the old one there
			t.Errorf("the host is called %q, not %q", after, before)
		}
		config, _ := os.ReadFile(filepath.Join(again.Bundle, "config.json"))
		if file := filepath.Join(again.Bundle, "criu.conf"); !strings.Contains(string(config), `"org.criu.config":"`+file+`"`) {
			t.Errorf("%s", config)
		}
		if state := b.state(again.ID, program); state != "paused" {
			t.Errorf("before its start it is %s", state)
		}
		if err := b.runtime.Start(t.Context(), again.ID); err != nil {
			t.Fatal(err)
		}
		if state := b.state(again.ID, program); state != "running" {
			t.Errorf("after its start it is %s", state)
		}
		said, _ = os.ReadFile(program + ".log")
		if !strings.Contains(string(said), "restore --detach --image-path "+image+" --work-path "+b.dir+"/work") {
			t.Errorf("%s", said)
		}
	})
}

// Where CRIU does not work the error says so, and the container goes on.
func TestNoCheckpoint(t *testing.T) {
	if err := exec.Command("criu", "check").Run(); err == nil {
		t.Skip("criu works on this machine")
	}
	eachRuntime(t, func(t *testing.T, b *bench) {
		l := b.make(command("sleep", "1000"))
		b.run(l)
		err := b.runtime.Checkpoint(t.Context(), l.ID, container.Checkpoint{Image: filepath.Join(b.dir, "image"), Exit: true})
		if !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "criu") {
			t.Errorf("%v (%s)", err, errs.KindOf(err))
		}
		if p, _ := b.keeper.Process(l.ID); p.Exit != nil {
			t.Error("it has ended")
		}
		again := b.make(command("true"))
		again.Restore = filepath.Join(b.dir, "image")
		if _, err := b.runtime.Create(t.Context(), again); !errors.Is(err, errs.Unsupported) {
			t.Errorf("restore: %v (%s)", err, errs.KindOf(err))
		}
		b.nothingLeft(again.ID)
	})
}
