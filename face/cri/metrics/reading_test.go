package metrics

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth/node/stats"
	"berth/spec"
)

// onePod is all that a node has.
type onePod struct{}

func (onePod) Pod(string) (spec.Pod, error) { return spec.Pod{}, nil }

func (onePod) Pods() []spec.Pod {
	return []spec.Pod{{ID: "p", Config: spec.PodConfig{CgroupParent: "/pods/p"}}}
}

func (onePod) Container(string) (spec.PodContainer, error) { return spec.PodContainer{}, nil }

func (onePod) Containers() []spec.PodContainer {
	return []spec.PodContainer{{ID: "c", Cgroup: "/pods/p/c"}}
}

// However many pods come and go, only so much is remembered, and of those that
// are there nothing is forgotten.
func TestGonePodsAreForgotten(t *testing.T) {
	now := time.Now()
	s := New(t.Context(), Config{Pods: onePod{}})
	s.seen["/pods/p"], s.seen["/pods/p/c"], s.nets["p"] = &reading{}, &reading{}, traffic{at: now}
	for _, r := range s.seen {
		r.Time = now
	}
	for i := range 10 * fewKnown {
		name := fmt.Sprint("gone-", i)
		r := &reading{}
		r.Time = now
		s.seen[name], s.nets[name] = r, traffic{at: now}
		s.forget(now)
		if n := len(s.seen) + len(s.nets); n > 2*fewKnown {
			t.Fatalf("%d readings are remembered", n)
		}
	}
	if s.seen["/pods/p"] == nil || s.seen["/pods/p/c"] == nil || s.nets["p"].at.IsZero() {
		t.Error("the pod that is there is forgotten")
	}
	s.forget(now.Add(remembered + time.Second))
	if len(s.seen)+len(s.nets) > 0 {
		t.Error("what nobody asks for is remembered")
	}
}

// What is set is read anew when a client has asked for something else, when more
// of it is wanted, and after a while.
func TestSettingsAreReadAnew(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("cgroup.controllers", "memory\n")
	put("pod/memory.current", "7\n")
	put("pod/memory.max", "4096\n")
	put("pod/cpu.max", "5000 100000\n")
	meter, err := stats.OpenAt(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := New(t.Context(), Config{Pods: onePod{}, Meter: meter, Log: slog.New(slog.DiscardHandler)})
	read := func(asked limits, parts stats.Parts) *reading {
		t.Helper()
		if old := s.seen["/pod"]; old != nil {
			old.Time = old.Time.Add(-fresh)
		}
		r := s.read(t.Context(), []target{{cgroup: "/pod", asked: asked}}, parts)["/pod"]
		if r == nil || r.cached || r.Memory.Usage != 7 {
			t.Fatalf("read %+v", r)
		}
		return r
	}
	is := func(what string, r *reading, limit uint64) {
		t.Helper()
		if r.Memory.Limit != limit {
			t.Errorf("%s: the limit is %d, want %d", what, r.Memory.Limit, limit)
		}
	}
	is("at first", read(limits{}, stats.Basic), 4096)
	put("pod/memory.max", "8192\n")
	is("set by hand", read(limits{}, stats.Basic), 4096)
	is("asked for", read(limits{memory: 8192}, stats.Basic), 8192)
	if r := read(limits{memory: 8192}, stats.Basic|stats.Finer); r.CPU.Quota != 5000 {
		t.Errorf("the quota is %d when it is first wanted", r.CPU.Quota)
	}
	put("pod/memory.max", "1024\n")
	is("by hand again", read(limits{memory: 8192}, stats.Basic|stats.Finer), 8192)
	s.seen["/pod"].set.at = s.seen["/pod"].set.at.Add(-setForAWhile)
	is("after a while", read(limits{memory: 8192}, stats.Basic|stats.Finer), 1024)
}
