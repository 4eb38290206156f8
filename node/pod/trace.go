package pod

import (
	"context"
	"slices"
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

// traces remembers the steps of what was done for pods.
type traces struct {
	mu    sync.Mutex
	byPod map[string][]*trace
	gone  []string // the oldest first
}

type trace struct {
	call  string
	trail span.Trail
}

func (t *traces) init() { t.byPod = map[string][]*trace{} }

// traced begins a call for a pod, as a span and in its trace.
func (s *Set) traced(ctx context.Context, pod, what string) (context.Context, func(error)) {
	one := &trace{call: what}
	s.traces.add(pod, one)
	return span.Start(span.Follow(ctx, &one.trail), what, "pod", pod)
}

func (t *traces) add(pod string, one *trace) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.byPod[pod]
	if len(all) == tracedCalls {
		all = slices.Delete(all, tracedFirst, tracedFirst+1)
	}
	t.byPod[pod] = append(all, one)
}

// left notes that the pod is gone. Its trace stays for a while.
func (t *traces) left(pod string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = append(t.gone, pod)
	if len(t.gone) > tracedRemoved {
		delete(t.byPod, t.gone[0])
		t.gone = slices.Delete(t.gone, 0, 1)
	}
}

// Trace returns the steps of what was done for a pod since this node runs, in
// the order of their beginnings. The pod may be gone for a short while; of one
// that nothing is remembered of there are none.
func (s *Set) Trace(pod string) []spec.PodTraceStep {
	if p, err := s.find(pod); err == nil {
		pod = p.id
	}
	s.traces.mu.Lock()
	calls := slices.Clone(s.traces.byPod[pod])
	s.traces.mu.Unlock()
	steps := []spec.PodTraceStep{}
	for _, c := range calls {
		for _, step := range c.trail.Steps() {
			one := spec.PodTraceStep{Call: c.call, Step: step.Name, Depth: step.Depth, Started: step.Started, Duration: step.Duration}
			if step.Err != nil {
				one.Error = step.Err.Error()
			}
			steps = append(steps, one)
		}
	}
	slices.SortStableFunc(steps, func(a, b spec.PodTraceStep) int { return a.Started.Compare(b.Started) })
	return steps
}
