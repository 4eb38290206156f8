package pod_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"berth/spec"
)

// outermost are the calls of a trace.
func outermost(steps []spec.PodTraceStep) string {
	var calls []string
	for _, step := range steps {
		if step.Depth == 0 {
			calls = append(calls, step.Call)
		}
	}
	return strings.Join(calls, ", ")
}

// How a pod was started is known to the next node, too, with what is done
// since; not after a reboot.
func TestATraceOutlivesTheNode(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	check(t, s.StartContainer(t.Context(), create(t, s, id, containerConfig("c"))))
	before := s.Trace(id)

	w.end()
	s = w.node()
	after := s.Trace(id[:12])
	if want := "run pod, create container c, start container c"; outermost(after) != want || len(after) != len(before) || after[0].Duration == 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	check(t, s.StopPod(t.Context(), id))
	w.end()
	s = w.node()
	if got := outermost(s.Trace(id)); !strings.HasPrefix(got, "run pod, ") || !strings.HasSuffix(got, ", stop pod") {
		t.Errorf("after two nodes: %s", got)
	}
	check(t, s.RemovePod(t.Context(), id))
	if got := outermost(s.Trace(id)); !strings.Contains(got, ", remove pod") {
		t.Errorf("of the pod that is gone: %s", got)
	}
	w.flush()
	check(t, w.empty())
}

// A pod that could not be made has no entry in any list; its trace is found by
// its name, and says why. Not of all such pods for ever.
func TestTheTraceOfAPodThatCouldNotBeMade(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	w.setCue(func(_ int, name string, _ bool) error {
		if name == "attach" {
			return errors.New("no address is left")
		}
		return nil
	})
	for n := range 100 {
		if _, err := s.RunPod(t.Context(), podConfig(fmt.Sprint("web", n))); err == nil {
			t.Fatal("it was made")
		}
	}
	w.setCue(nil)
	for _, ref := range []string{"web99", "default/web99"} {
		steps := s.Trace(ref)
		if outermost(steps) != "run pod" || !strings.Contains(steps[0].Error, "no address is left") {
			t.Errorf("%s: %+v", ref, steps)
		}
	}
	if steps := s.Trace("web0"); len(steps) != 0 {
		t.Errorf("after many others: %+v", steps)
	}
	w.flush()
	check(t, w.empty())
}
