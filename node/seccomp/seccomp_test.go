package seccomp

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

func TestOrders(t *testing.T) {
	c := spec.PodContainer{Config: spec.PodContainerConfig{Name: "app"}}
	for _, tt := range []struct {
		annotations map[string]string
		want        string
		kind        errs.Kind
	}{
		{nil, "", ""},
		{map[string]string{"seccomp-notifier-action.crio.io": "stop"}, "stop", ""},
		{map[string]string{"seccomp-notifier-action.crio.io": "true"}, "deny", ""},
		{map[string]string{"io.kubernetes.cri-o.seccompNotifierAction": "stop"}, "stop", ""},
		{map[string]string{"io.kubernetes.cri-o.seccompNotifierAction": ""}, "deny", ""},
		{map[string]string{"seccomp-notifier-action.berth.io": "audit", "seccomp-notifier-action.crio.io": "stop"}, "audit", ""},
		{map[string]string{"seccomp-notifier-action.berth.io/app": "record", "seccomp-notifier-action.berth.io": "stop"}, "record", ""},
		{map[string]string{"seccomp-notifier-action.berth.io/other": "record"}, "", ""},
		{map[string]string{"seccomp-notifier-action.berth.io": "record=team/app.json"}, "record=team/app.json", ""},
		{map[string]string{"seccomp-notifier-action.berth.io": "record="}, "", errs.Invalid},
		{map[string]string{"seccomp-notifier-action.berth.io": "stop=x"}, "", errs.Invalid},
		{map[string]string{"seccomp-notifier-action.berth.io": "please"}, "", errs.Invalid},
	} {
		got, err := orderFor(spec.Pod{Config: spec.PodConfig{Annotations: tt.annotations}}, c)
		if got.String() != tt.want || errs.KindOf(err) != tt.kind {
			t.Errorf("%v: %q, %v; want %q, %q", tt.annotations, got, err, tt.want, tt.kind)
		}
	}
}

func TestTable(t *testing.T) {
	table, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	kernel, _ := architectures(family()[0])
	for number, name := range map[int32]string{
		unix.SYS_READ: "read", unix.SYS_MOUNT: "mount", unix.SYS_CLONE3: "clone3", unix.SYS_MKDIRAT: "mkdirat",
		unix.SYS_UNSHARE: "unshare", unix.SYS_PREAD64: "pread64", 99999: "",
	} {
		got := table.name(kernel, number)
		if name == "" {
			name = got[:strings.IndexByte(got, ':')] + ":99999"
		}
		if got != name {
			t.Errorf("call %d is %q, want %q", number, got, name)
		}
	}
	if names := table.names(); len(names) < 350 || !slices.IsSorted(names) {
		t.Errorf("%d names", len(names))
	}
}

func aProfile() *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"openat", "write", "execve"}, Action: specs.ActAllow},
			{Names: []string{"mkdir", "write"}, Action: specs.ActErrno, ErrnoRet: new(uint(13))},
			{Names: []string{"reboot"}, Action: specs.ActKillProcess},
			{Names: []string{"acct"}, Action: specs.ActTrap},
			{Names: []string{"personality"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 8, Op: specs.OpEqualTo}}},
		},
	}
}

func rule(p *specs.LinuxSeccomp, name string) []specs.LinuxSeccompAction {
	var all []specs.LinuxSeccompAction
	for _, r := range p.Syscalls {
		if slices.Contains(r.Names, name) {
			all = append(all, r.Action)
		}
	}
	return all
}

func TestRewrite(t *testing.T) {
	names, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	w := &Watcher{table: names}
	before := aProfile()
	got := w.rewrite(deny, before)
	for name, want := range map[string][]specs.LinuxSeccompAction{
		"openat":      {specs.ActAllow},
		"write":       {specs.ActAllow, specs.ActErrno}, // never asked about
		"mkdir":       {specs.ActNotify},
		"reboot":      {specs.ActNotify},
		"acct":        {specs.ActTrap},
		"personality": {specs.ActAllow}, // under its condition; else refused unasked
		"mount":       {specs.ActNotify},
		"futex":       nil, // a runtime may need it before anybody answers
	} {
		if rules := rule(got, name); !slices.Equal(rules, want) {
			t.Errorf("%s: %v, want %v", name, rules, want)
		}
	}
	if got.DefaultAction != specs.ActErrno || before.Syscalls[1].Action != specs.ActErrno {
		t.Errorf("default %s, the original's %v", got.DefaultAction, before.Syscalls[1])
	}

	allowing := w.rewrite(stop, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActKill}}})
	if len(allowing.Syscalls) != 1 || allowing.Syscalls[0].Action != specs.ActNotify {
		t.Errorf("a list of what is forbidden: %v", allowing.Syscalls)
	}

	for name, want := range map[string][]specs.LinuxSeccompAction{
		"openat": {specs.ActNotify}, "mount": {specs.ActNotify}, "write": {specs.ActAllow, specs.ActErrno}, "futex": nil, "execve": {specs.ActNotify},
	} {
		if rules := rule(w.rewrite(record, aProfile()), name); !slices.Equal(rules, want) {
			t.Errorf("recording, %s: %v, want %v", name, rules, want)
		}
	}
	if open := w.rewrite(record, nil); open.DefaultAction != specs.ActAllow || rule(open, "mount")[0] != specs.ActNotify {
		t.Errorf("recording of an unconfined container: default %s", open.DefaultAction)
	}
}

func TestVerdicts(t *testing.T) {
	p := aProfile()
	p.Syscalls = append(p.Syscalls,
		specs.LinuxSyscall{Names: []string{"fake"}, Action: specs.ActErrno, ErrnoRet: new(uint(0))},
		specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: 1, Op: specs.OpEqualTo}, {Index: 0, Value: 2, Op: specs.OpEqualTo},
		}},
		specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: 0x7E020000, ValueTwo: 0, Op: specs.OpMaskedEqual}, {Index: 1, Value: 5, Op: specs.OpGreaterThan},
		}},
	)
	for _, tt := range []struct {
		name string
		args [6]uint64
		no   unix.Errno
		may  bool
	}{
		{"openat", [6]uint64{}, 0, true},
		{"mkdir", [6]uint64{}, unix.EACCES, false},
		{"reboot", [6]uint64{}, unix.ENOSYS, false},
		{"mount", [6]uint64{}, unix.EPERM, false},
		{"personality", [6]uint64{8}, 0, true},
		{"personality", [6]uint64{9}, unix.EPERM, false},
		{"fake", [6]uint64{}, 0, false},
		{"socket", [6]uint64{2}, 0, true},
		{"socket", [6]uint64{3}, unix.EPERM, false},
		{"clone", [6]uint64{17, 6}, 0, true},
		{"clone", [6]uint64{17, 5}, unix.EPERM, false},
		{"clone", [6]uint64{0x10000000, 6}, unix.EPERM, false},
	} {
		if no, may := verdict(p, tt.name, tt.args); no != tt.no || may != tt.may {
			t.Errorf("%s%v: %d, %v; want %d, %v", tt.name, tt.args, no, may, tt.no, tt.may)
		}
	}
	if no, may := verdict(nil, "mount", [6]uint64{}); no != 0 || !may {
		t.Error("an unconfined container may not mount")
	}
}

// silent is a room that hears of events.
type silent struct{}

func (silent) Publish(string, string, string, map[string]string) {}

func open(t *testing.T, config Config) *Watcher {
	t.Helper()
	if config.State == "" {
		config.State = t.TempDir()
	}
	if config.Profiles == "" {
		config.Profiles = filepath.Join(config.State, "profiles")
	}
	if config.Events == nil {
		config.Events = silent{}
	}
	config.Log = slog.New(slog.DiscardHandler)
	w, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWatchRefuses(t *testing.T) {
	for _, tt := range []struct {
		action   string
		trusting bool
		profile  *specs.LinuxSeccomp
		kind     errs.Kind
		watched  bool
	}{
		{"", false, aProfile(), "", false},
		{"deny", false, aProfile(), "", true},
		{"deny", false, nil, "", false},
		{"record", false, nil, "", true},
		{"audit", false, aProfile(), errs.Denied, false},
		{"audit", true, aProfile(), "", true},
		{"record=a.json", false, aProfile(), errs.Denied, false},
		{"record=a.json", true, aProfile(), "", true},
		{"record=../a.json", true, aProfile(), errs.Invalid, false},
		{"record=/a.json", true, aProfile(), errs.Invalid, false},
		{"deny", true, &specs.LinuxSeccomp{ListenerPath: "/x"}, errs.Invalid, false},
	} {
		w := open(t, Config{Trusting: tt.trusting, Localhost: t.TempDir()})
		pod := spec.Pod{ID: "p"}
		if tt.action != "" {
			pod.Config.Annotations = map[string]string{annotation: tt.action}
		}
		got, err := w.Watch(t.Context(), pod, spec.PodContainer{ID: "c"}, tt.profile)
		if errs.KindOf(err) != tt.kind || (w.find("c") != nil) != tt.watched || (got != nil && got.ListenerMetadata == "c") != tt.watched {
			t.Errorf("%+v: %v, %v", tt, got, err)
		}
		if err := errors.Join(w.Unwatch(t.Context(), "c"), w.Unwatch(t.Context(), "c")); err != nil {
			t.Error(err)
		}
		if files, _ := filepath.Glob(filepath.Join(w.dir(), "c*")); len(files) > 0 {
			t.Errorf("%+v leaves %v", tt, files)
		}
	}
}

func TestRecordedFilesStayBelowTheirFolder(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	w := open(t, Config{})
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := w.merge(dir, "out/a.json", "n/p/c", []string{"mount"}); err == nil {
		t.Error("a link leads out")
	}
	own := filepath.Join(dir, "admin.json")
	if err := os.WriteFile(own, []byte(`{"defaultAction":"SCMP_ACT_ERRNO"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.merge(dir, "admin.json", "n/p/c", []string{"mount"}); errs.KindOf(err) != errs.Exists {
		t.Errorf("another's profile: %v", err)
	}
	for range 2 {
		if err := w.merge(dir, "team/app.json", "n/p/c", []string{"mount", "openat"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.merge(dir, "team/app.json", "n/q/c", []string{"acct"}); err != nil {
		t.Fatal(err)
	}
	root, _ := os.OpenRoot(dir)
	defer root.Close()
	r, err := readRecorded(root, "team/app.json")
	if err != nil || !slices.Equal(r.From, []string{"n/p/c", "n/q/c"}) {
		t.Fatalf("%v, %v", r.From, err)
	}
	names := r.Syscalls[0].Names
	for _, name := range []string{"mount", "openat", "acct", "write", "execve"} {
		if !slices.Contains(names, name) {
			t.Errorf("no %s in the profile", name)
		}
	}
	if slices.Contains(names, "reboot") || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("names %v", names)
	}
	if files, _ := os.ReadDir(outside); len(files) > 0 {
		t.Errorf("outside there is %v", files)
	}
}

func TestBrokenStateIsDropped(t *testing.T) {
	state := t.TempDir()
	broken := filepath.Join(state, "seccomp", "c.json")
	if err := errors.Join(os.MkdirAll(filepath.Dir(broken), 0o700), os.WriteFile(broken, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	w := open(t, Config{State: state})
	if _, err := os.Stat(broken); err == nil || len(w.watched) > 0 {
		t.Errorf("still there: %v", w.watched)
	}
}
