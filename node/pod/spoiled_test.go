package pod_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth/spec"
)

// Files that make no sense: the node starts, what the database knows goes on,
// and what is lost is taken away.
func TestRecordsThatMakeNoSense(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	kept, cut := run(t, s, podConfig("kept")), run(t, s, podConfig("cut"))
	members := map[string]string{}
	for _, pod := range []string{kept, cut} {
		members[pod] = create(t, s, pod, containerConfig("c"))
		check(t, s.StartContainer(t.Context(), members[pod]))
	}
	w.flush()
	lost, empty := run(t, s, podConfig("lost")), run(t, s, podConfig("empty"))
	check(t, s.StartContainer(t.Context(), create(t, s, lost, containerConfig("c"))))
	gone := create(t, s, empty, containerConfig("gone"))
	forgetLater(t, w, lost)
	forgetLater(t, w, empty)
	w.end()
	for file, text := range map[string]string{
		cut + "/pod.json": `{"pod":{"id":"` + cut, cut + "/" + members[cut] + ".json": "", lost + "/pod.json": "\x00\xff",
		empty + "/" + gone + ".json": "{}",
	} {
		check(t, os.WriteFile(filepath.Join(w.dir, "state", "pods", file), []byte(text), 0o600))
	}
	for range 2 { // the second finds what the first has mended
		s = w.node()
		w.sweep(s, func() error { return whole(w, s) })
		if len(s.Pods()) != 3 || len(s.Containers()) != 2 {
			t.Fatalf("there are %d pods and %d containers", len(s.Pods()), len(s.Containers()))
		}
		for _, p := range s.Pods() {
			if p.State != spec.PodReady {
				t.Errorf("pod %s is %s", p.Config.Name, p.State)
			}
		}
		for _, pod := range []string{kept, cut} {
			if is := state(t, s, members[pod]); is.State != spec.Running {
				t.Errorf("container %s is %s", is.ID, is.State)
			}
		}
		w.end()
	}
	s = w.node()
	for _, p := range s.Pods() {
		check(t, s.RemovePod(t.Context(), p.ID))
	}
	w.flush()
	check(t, w.empty())
}
