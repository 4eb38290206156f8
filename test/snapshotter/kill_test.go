package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"berth/test/machine"
)

// told is what the snapshotter has said there is, by name.
type told map[string]snapshots.Info

// history is what must be there after a kill: what was told, or what there
// would be had the operation been done that was under way.
type history struct{ now, underWay told }

func (m told) of(kinds ...snapshots.Kind) (names []string) {
	for name, info := range m {
		if slices.Contains(kinds, info.Kind) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (m told) leaves() (names []string) {
	parents := map[string]bool{}
	for _, info := range m {
		parents[info.Parent] = true
	}
	for name := range m {
		if !parents[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TestKilled kills the snapshotter in the middle of many operations, again and
// again: what it had answered is there afterwards, and what it was doing is
// either done or not.
func TestKilled(t *testing.T) {
	machine.Need(t)
	for _, rung := range rungs {
		t.Run(rung, func(t *testing.T) {
			root := t.TempDir()
			d := newSnapshotter(t, root, rung)
			random := rand.New(rand.NewPCG(1, 2))
			h := &history{now: told{}}
			for round := range 8 {
				h.untilKilled(t, d, random, round)
				d.Kill()
				d.Start(t)
			}
			s, conn := dial(t, d.Socket)
			defer conn.Close()
			h.check(t, s, 8)
			for len(h.now) > 0 {
				for _, name := range h.now.leaves() {
					machine.Must(t, s.Remove(t.Context(), name))
					delete(h.now, name)
				}
			}
			machine.Await(t, "nothing is mounted any more", func() bool { return len(machine.Mounts(t, root)) == 0 })
		})
	}
}

// untilKilled checks what there is, and then works until the snapshotter is
// killed and does not answer any more.
func (h *history) untilKilled(t *testing.T, d *machine.Daemon, random *rand.Rand, round int) {
	t.Helper()
	s, conn := dial(t, d.Socket)
	defer conn.Close()
	h.check(t, s, round)
	var killer sync.WaitGroup
	defer killer.Wait()
	patience := time.Duration(20+random.IntN(150)) * time.Millisecond
	killer.Go(func() {
		<-time.After(patience)
		d.Signal(t, syscall.SIGKILL)
	})
	for i := 0; ; i++ {
		next, do := step(s, random, fmt.Sprint(round, "/", i), h.now)
		if err := do(t.Context()); err != nil {
			h.underWay = next
			return
		}
		h.now = next
	}
}

// check wants one of both to be there. A removal that was answered may come back: containerd
// collects it again, and so does this.
func (h *history) check(t *testing.T, s snapshots.Snapshotter, round int) {
	t.Helper()
	got := told{}
	machine.Must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		info.Created, info.Updated = time.Time{}, time.Time{}
		if len(info.Labels) == 0 {
			info.Labels = nil
		}
		got[info.Name] = info
		return nil
	}))
	for again := true; again; {
		again = false
		for _, name := range got.leaves() {
			_, known := h.now[name]
			_, underWay := h.underWay[name]
			if !known && !underWay {
				machine.Must(t, s.Remove(t.Context(), name))
				delete(got, name)
				again = true
			}
		}
	}
	switch {
	case reflect.DeepEqual(got, h.now):
	case reflect.DeepEqual(got, h.underWay):
		h.now = got
	default:
		t.Fatalf("round %d: there are\n%v\ntold was\n%v\nor\n%v", round, got, h.now, h.underWay)
	}
	for _, name := range got.of(snapshots.KindActive, snapshots.KindView) {
		if _, err := s.Mounts(t.Context(), name); err != nil {
			t.Errorf("round %d: %s: %v", round, name, err)
		}
	}
}

// step chooses an operation and says what there will be after it.
func step(s snapshots.Snapshotter, random *rand.Rand, name string, now told) (next told, do func(context.Context) error) {
	next = maps.Clone(now)
	pick := func(names []string) string {
		if len(names) == 0 {
			return ""
		}
		return names[random.IntN(len(names))]
	}
	labels := map[string]string{"of": name}
	active := pick(now.of(snapshots.KindActive))
	switch n := random.IntN(10); {
	case n < 3 && active != "":
		next[name] = snapshots.Info{Kind: snapshots.KindCommitted, Name: name, Parent: now[active].Parent, Labels: labels}
		delete(next, active)
		return next, func(ctx context.Context) error { return s.Commit(ctx, name, active, snapshots.WithLabels(labels)) }
	case n < 5 && len(now) > 10:
		gone := pick(now.leaves())
		delete(next, gone)
		return next, func(ctx context.Context) error { return s.Remove(ctx, gone) }
	case n < 6 && active != "":
		info := now[active]
		info.Labels = labels
		next[active] = info
		return next, func(ctx context.Context) error { _, err := s.Update(ctx, info); return err }
	case n < 7:
		parent := pick(now.of(snapshots.KindCommitted))
		next[name] = snapshots.Info{Kind: snapshots.KindView, Name: name, Parent: parent}
		return next, func(ctx context.Context) error { _, err := s.View(ctx, name, parent); return err }
	}
	parent := pick(now.of(snapshots.KindCommitted))
	next[name] = snapshots.Info{Kind: snapshots.KindActive, Name: name, Parent: parent, Labels: labels}
	return next, func(ctx context.Context) error {
		_, err := s.Prepare(ctx, name, parent, snapshots.WithLabels(labels))
		return err
	}
}
