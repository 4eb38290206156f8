package metrics

import (
	"fmt"
	"testing"
	"time"

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
