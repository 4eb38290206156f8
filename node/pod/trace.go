package pod

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"berth/base/span"
	"berth/spec"
)

// Bounds of what is remembered of how pods were made.
const (
	tracedCalls   = 32 // of one pod; the first ones stay, the oldest of the others go
	tracedFirst   = 8
	tracedRemoved = 64 // pods that are gone
)

// traces remembers the steps of what was done for pods. Those of calls that
// have ended are in a file of the pod's folder too, for the next node.
type traces struct {
	records *records

	mu    sync.Mutex
	byPod map[string][]*trace
	gone  []gonePod // the oldest first

	writing sync.Mutex
}

// gonePod is a pod that is there no more, or that could not be made. Whoever
// asks why knows only its name.
type gonePod struct{ id, name string }

// trace is of one call.
type trace struct {
	call  string
	trail span.Trail
	past  []spec.PodTraceStep // instead, of a call that an earlier node was asked
}

func (t *traces) init(r *records) { t.records, t.byPod = r, map[string][]*trace{} }

// traced begins a call for a pod, as a span and in its trace.
func (s *Set) traced(ctx context.Context, pod, what string) (context.Context, func(error)) {
	one := &trace{call: what}
	s.traces.add(pod, one)
	ctx, end := span.Start(span.Follow(ctx, &one.trail), what, "pod", pod)
	return ctx, func(err error) {
		end(err)
		s.traces.keep(pod)
	}
}

func (t *traces) add(pod string, one *trace) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.of(pod)
	if len(all) == tracedCalls {
		all = slices.Delete(all, tracedFirst, tracedFirst+1)
	}
	t.byPod[pod] = append(all, one)
}

// of are the calls of a pod, also those that an earlier node was asked. mu is
// held.
func (t *traces) of(pod string) []*trace {
	if calls, known := t.byPod[pod]; known {
		return calls
	}
	if strings.Contains(pod, "/") { // it is no id
		return nil
	}
	past, err := readFile[[][]spec.PodTraceStep](t.file(pod))
	if err != nil { // there is none, or what is there is of no use
		return nil
	}
	var calls []*trace
	for _, steps := range *past {
		if len(steps) > 0 {
			calls = append(calls, &trace{call: steps[0].Call, past: steps})
		}
	}
	t.byPod[pod] = calls
	return calls
}

func (t *traces) file(pod string) string { return filepath.Join(t.records.podDir(pod), "trace") }

// keep writes down the calls that have ended. A pod whose folder is gone, or a
// folder without room, has to do without.
func (t *traces) keep(pod string) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	calls := slices.Clone(t.byPod[pod])
	t.mu.Unlock()
	var ended [][]spec.PodTraceStep
	for _, c := range calls {
		if steps := c.steps(); len(steps) > 0 && steps[0].Duration > 0 {
			ended = append(ended, steps)
		}
	}
	if data, err := json.Marshal(ended); err == nil {
		_ = replaceFile(t.file(pod), data)
	}
}

// left notes that the pod is gone. Its trace stays for a while.
func (t *traces) left(pod, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = append(t.gone, gonePod{pod, name})
	if len(t.gone) > tracedRemoved {
		delete(t.byPod, t.gone[0].id)
		t.gone = slices.Delete(t.gone, 0, 1)
	}
}

// Trace returns the steps of what was done for a pod since the machine was
// booted, in the order of their beginnings. The pod may be gone for a short
// while; then it may be named, too, as name or namespace/name. Of one that
// nothing is remembered of there are none.
func (s *Set) Trace(pod string) []spec.PodTraceStep {
	if p, err := s.find(pod); err == nil {
		pod = p.id
	}
	steps := []spec.PodTraceStep{}
	for _, c := range s.traces.calls(pod) {
		steps = append(steps, c.steps()...)
	}
	slices.SortStableFunc(steps, func(a, b spec.PodTraceStep) int { return a.Started.Compare(b.Started) })
	return steps
}

func (t *traces) calls(pod string) []*trace {
	t.mu.Lock()
	defer t.mu.Unlock()
	calls := t.of(pod)
	for i := len(t.gone) - 1; i >= 0 && calls == nil; i-- {
		if g := t.gone[i]; pod == g.name || pod == filepath.Base(g.name) {
			calls = t.byPod[g.id]
		}
	}
	return slices.Clone(calls)
}

func (t *trace) steps() []spec.PodTraceStep {
	if t.past != nil {
		return t.past
	}
	var all []spec.PodTraceStep
	for _, step := range t.trail.Steps() {
		one := spec.PodTraceStep{Call: t.call, Step: step.Name, Depth: step.Depth, Started: step.Started, Duration: step.Duration}
		if step.Err != nil {
			one.Error = step.Err.Error()
		}
		all = append(all, one)
	}
	return all
}
