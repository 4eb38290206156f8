package rest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// pods are three: web in two namespaces, the one in shop twice.
type pods struct{ *node }

func aPod(id, namespace string, state spec.PodState) spec.Pod {
	return spec.Pod{ID: id, State: state, Config: spec.PodConfig{Name: "web", Namespace: namespace, UID: "u" + id, Labels: map[string]string{"app": namespace}}}
}

func (p pods) Pods() []spec.Pod {
	return []spec.Pod{aPod("aa1", "shop", spec.PodNotReady), aPod("aa2", "shop", spec.PodReady), aPod("bb1", "test", spec.PodReady)}
}

func (p pods) Pod(id string) (spec.Pod, error) {
	var found []spec.Pod
	for _, one := range p.Pods() {
		if strings.HasPrefix(one.ID, id) {
			found = append(found, one)
		}
	}
	switch len(found) {
	case 0:
		return spec.Pod{}, errs.New(errs.NotFound, "no pod %s", id)
	case 1:
		return found[0], nil
	}
	return spec.Pod{}, errs.New(errs.Conflict, "%d pods begin with %s", len(found), id)
}

func (p pods) Containers() []spec.PodContainer {
	return append(p.ContainersOf("aa2"), p.ContainersOf("bb1")...)
}

func (p pods) ContainersOf(pod string) []spec.PodContainer {
	return []spec.PodContainer{{ID: "c-" + pod, Pod: pod}}
}
func (p pods) StopPod(_ context.Context, id string) error   { return p.note("stop pod %s", id) }
func (p pods) RemovePod(_ context.Context, id string) error { return p.note("remove pod %s", id) }

func (p pods) Trace(pod string) []spec.PodTraceStep {
	if pod != "aa2" && pod != "gone" {
		return nil
	}
	return []spec.PodTraceStep{{Call: "run pod", Step: "network", Depth: 1, Duration: time.Second}}
}

func (p pods) Usage(_ context.Context, ids []string) ([]spec.PodStats, error) {
	return []spec.PodStats{{ID: "aa2", PodUsage: spec.PodUsage{Memory: 7}}}, p.note("usage %v", ids)
}

func TestPods(t *testing.T) {
	n := newNode()
	c := start(t, n).client()
	list := func(f spec.Filter) string {
		all, err := c.PodList(bg, f)
		if err != nil {
			return string(errs.KindOf(err))
		}
		ids := []string{}
		for _, p := range all {
			ids = append(ids, p.ID)
		}
		return strings.Join(ids, " ")
	}
	for _, want := range []struct {
		filter spec.Filter
		ids    string
	}{
		{nil, "aa1 aa2 bb1"},
		{spec.Filter{"state": {"ready"}}, "aa2 bb1"},
		{spec.Filter{"state": {"ready"}, "namespace": {"shop"}}, "aa2"},
		{spec.Filter{"id": {"b", "aa1"}}, "aa1 bb1"},
		{spec.Filter{"label": {"app=test"}}, "bb1"},
		{spec.Filter{"label": {"app"}, "name": {"we"}, "uid": {"uaa1"}}, "aa1"},
		{spec.Filter{"name": {"db"}}, ""},
		{spec.Filter{"state": {"odd"}}, "invalid"},
		{spec.Filter{"color": {"red"}}, "invalid"},
	} {
		if got := list(want.filter); got != want.ids {
			t.Errorf("%v: %q, want %q", want.filter, got, want.ids)
		}
	}
	for ref, want := range map[string]string{
		"bb": "bb1", "aa2": "aa2", "aa": "conflict", "shop/web": "aa2", "test/web": "bb1", "web": "conflict", "we": "not found", "other/web": "not found",
	} {
		p, err := c.PodGet(bg, ref)
		got := p.ID
		if err != nil {
			got = string(errs.KindOf(err))
		}
		if got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
	if err := c.PodRemove(bg, "shop/web", false); !errors.Is(err, errs.Conflict) || n.last() != "" {
		t.Errorf("a ready pod was removed: %v, %s", err, n.last())
	}
	if err := c.PodRemove(bg, "aa1", false); err != nil || n.last() != "remove pod aa1" {
		t.Errorf("%v, %s", err, n.last())
	}
	for ref, want := range map[string]int{"shop/web": 1, "gone": 1, "bb1": 0} {
		if steps, err := c.PodTrace(bg, ref); err != nil || steps == nil || len(steps) != want {
			t.Errorf("trace of %s: %v, %v", ref, steps, err)
		}
	}
	if _, err := c.PodTrace(bg, "nothing"); !errors.Is(err, errs.NotFound) {
		t.Errorf("trace of nothing: %v", err)
	}
	if all, err := c.PodContainers(bg, "test/web"); err != nil || fmt.Sprint(all[0].ID) != "c-bb1" {
		t.Errorf("%v, %v", all, err)
	}
}
