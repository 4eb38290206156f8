package pod_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/pod"
	"berth/spec"
)

// verb is something that can be cut off.
type verb struct {
	name  string
	ready func(*testing.T, *pod.Set) // what comes before
	do    func(*testing.T, *pod.Set) error
}

func shared(name string) spec.PodConfig {
	config := podConfig(name)
	config.Security.Namespaces.PID = spec.NamespacePod
	return config
}

func withVolume(name string) spec.PodContainerConfig {
	c := containerConfig(name)
	c.Mounts = []spec.PodMount{{Target: "/v", Image: "data"}}
	return c
}

func only(t *testing.T, s *pod.Set) spec.Pod {
	t.Helper()
	pods := s.Pods()
	if len(pods) != 1 {
		t.Fatalf("%d pods", len(pods))
	}
	return pods[0]
}

func theContainer(t *testing.T, s *pod.Set) string {
	t.Helper()
	all := s.Containers()
	if len(all) != 1 {
		t.Fatalf("%d containers", len(all))
	}
	return all[0].ID
}

func verbs() []verb {
	runPod := func(t *testing.T, s *pod.Set) { run(t, s, shared("web")) }
	created := func(t *testing.T, s *pod.Set) { create(t, s, run(t, s, shared("web")), withVolume("c")) }
	started := func(t *testing.T, s *pod.Set) {
		created(t, s)
		check(t, s.StartContainer(t.Context(), theContainer(t, s)))
	}
	removePod := func(t *testing.T, s *pod.Set) error {
		for _, p := range s.Pods() { // none where an earlier call goes on behind
			return s.RemovePod(t.Context(), p.ID)
		}
		return nil
	}
	stopped := func(t *testing.T, s *pod.Set) { started(t, s); check(t, s.StopPod(t.Context(), only(t, s).ID)) }
	return []verb{
		{"run pod", func(*testing.T, *pod.Set) {}, func(t *testing.T, s *pod.Set) error {
			_, err := s.RunPod(t.Context(), shared("web"))
			return err
		}},
		{"create container", runPod, func(t *testing.T, s *pod.Set) error {
			_, err := s.CreateContainer(t.Context(), only(t, s).ID, withVolume("c"))
			return err
		}},
		{"start container", created, func(t *testing.T, s *pod.Set) error { return s.StartContainer(t.Context(), theContainer(t, s)) }},
		{"stop container", started, func(t *testing.T, s *pod.Set) error { return s.StopContainer(t.Context(), theContainer(t, s), 0) }},
		{"remove container", started, func(t *testing.T, s *pod.Set) error {
			for _, c := range s.Containers() { // none where an earlier call goes on behind
				return s.RemoveContainer(t.Context(), c.ID)
			}
			return nil
		}},
		{"stop pod", started, func(t *testing.T, s *pod.Set) error { return s.StopPod(t.Context(), only(t, s).ID) }},
		{"remove pod", stopped, removePod},
		{"checkpoint container", started, func(t *testing.T, s *pod.Set) error {
			return s.Checkpoint(t.Context(), theContainer(t, s), filepath.Join(folder(t, "archive"), "c.tar"))
		}},
		{"checkpoint pod", started, func(t *testing.T, s *pod.Set) error {
			return s.CheckpointPod(t.Context(), only(t, s).ID, folder(t, "empty"), []string{theContainer(t, s)})
		}},
		{"restore pod", func(t *testing.T, s *pod.Set) {
			started(t, s)
			check(t, s.CheckpointPod(t.Context(), only(t, s).ID, folder(t, "full"), []string{theContainer(t, s)}), s.RemovePod(t.Context(), only(t, s).ID))
		}, func(t *testing.T, s *pod.Set) error {
			_, _, err := s.RestorePod(t.Context(), folder(t, "full"), shared("web"), []spec.PodContainerConfig{withVolume("c")})
			return err
		}},
		{"remove pod that runs", started, removePod},
	}
}

// folder is one of the test's, the same for the same name.
func folder(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(t.TempDir()), name)
	check(t, os.MkdirAll(dir, 0o700))
	return dir
}

// length is how many calls of rooms a verb makes.
func length(t *testing.T, v verb) int {
	w := newWorld(t)
	s := w.node()
	v.ready(t, s)
	w.setCue(nil)
	check(t, v.do(t, s))
	return w.step
}

// A node that ends in the middle of anything, and one that comes after it on the
// same boot or on the next: what there is is whole, the call can be made again,
// and in the end nothing is left.
func TestANodeThatIsKilledAtEachStep(t *testing.T) {
	for _, v := range verbs() {
		for n := range length(t, v) {
			for _, after := range []bool{false, true} {
				for _, reboot := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%d,after=%t,reboot=%t", v.name, n, after, reboot), func(t *testing.T) {
						killed(t, v, n, after, reboot)
					})
				}
			}
		}
	}
}

func killed(t *testing.T, v verb, n int, after, reboot bool) {
	w := newWorld(t)
	s := w.node()
	v.ready(t, s)
	w.flush()
	reached, never := make(chan struct{}), make(chan struct{})
	dead := s
	t.Cleanup(func() { close(never); _ = dead.Close() }) // all has been looked at by then
	w.setCue(func(step int, _ string, late bool) error {
		if step == n && late == after {
			close(reached)
			<-never
			return errors.New("it is dead")
		}
		if step > n { // others of the dead node
			<-never
			return errors.New("it is dead")
		}
		return nil
	})
	go func() { _ = v.do(t, s) }()
	<-reached
	w.end() // what it would do by itself it does no more
	w.flush()
	w.setCue(nil)
	if reboot {
		w.reboot()
	}
	s = w.node()
	w.sweep(s, func() error { return whole(w, s) })
	for _, p := range s.Pods() {
		if reboot && p.State == spec.PodReady {
			t.Errorf("pod %s is ready after a reboot", p.ID)
		}
	}
	for _, c := range s.Containers() {
		if reboot && c.State != spec.Stopped {
			t.Errorf("container %s is %s after a reboot", c.ID, c.State)
		}
	}
	for _, c := range s.Containers() {
		if c.State == spec.Paused {
			t.Errorf("container %s stands still", c.ID)
		}
	}
	for _, name := range []string{"archive", "empty"} { // of a checkpoint that nobody was told of
		entries, err := os.ReadDir(folder(t, name))
		check(t, err)
		for _, e := range entries {
			if e.Name() != "c.tar" {
				t.Errorf("%s is left", e.Name())
			}
		}
	}
	restored := v.name == "restore pod" && len(s.Pods()) == 1 // for good, and its name is taken
	if !reboot && !restored && (len(s.Pods()) == 1 || v.name == "restore pod") && (v.name != "start container" || len(s.Containers()) == 1) {
		if err := v.do(t, s); err != nil {
			t.Errorf("the call made again: %v", err)
		}
	}
	for _, p := range s.Pods() {
		check(t, s.RemovePod(t.Context(), p.ID))
	}
	if _, err := s.RunPod(t.Context(), shared("web")); err != nil {
		t.Errorf("the pod anew: %v", err)
	}
	check(t, s.RemovePod(t.Context(), only(t, s).ID))
	w.flush()
	check(t, w.empty())
	check(t, s.Close())
}

// whole says what there is in the rooms that no pod and no container claims.
func whole(w *world, s *pod.Set) error {
	seen := map[string]bool{"layers": true}
	for _, p := range s.Pods() {
		seen[p.ID] = true
	}
	for _, c := range s.Containers() {
		seen[c.ID] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.namespaces {
		if !seen[id] {
			return fmt.Errorf("namespaces of %s are left", id)
		}
	}
	for id := range w.givens {
		if !seen[id] {
			return fmt.Errorf("container %s is left", id)
		}
	}
	for key, i := range w.snapshots {
		if id := i.Labels["berth.podcontainer"]; key != "layers" && !seen[id] {
			return fmt.Errorf("snapshot %s is left", key)
		}
	}
	for name := range w.networks {
		if !seen[name[len("network "):]] {
			return fmt.Errorf("%s is left", name)
		}
	}
	for name := range w.mounts {
		if id := filepath.Base(filepath.Dir(name)); !seen[id] && !seen[filepath.Base(name)] && (len(name) < 8 || !seen[name[8:]]) {
			return fmt.Errorf("mount %s is left", name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(w.dir, "state", "pods"))
	for _, e := range entries {
		if !seen[e.Name()] {
			return fmt.Errorf("folder %s is left", e.Name())
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// A step that fails once: the call says so, and can be made again.
func TestEachStepFailsOnce(t *testing.T) {
	for _, v := range verbs() {
		for n := range length(t, v) {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d,after=%t", v.name, n, after), func(t *testing.T) { failsOnce(t, v, n, after) })
			}
		}
	}
}

func failsOnce(t *testing.T, v verb, n int, after bool) {
	w := newWorld(t)
	s := w.node()
	v.ready(t, s)
	w.setCue(func(step int, name string, late bool) error {
		if step == n && late == after {
			return errs.New(errs.Internal, "%s fails on cue", name)
		}
		return nil
	})
	first := v.do(t, s)
	if v.name == "run pod" || v.name == "create container" {
		if first == nil {
			t.Error("the call did not fail")
		}
		w.sweep(s, func() error { return whole(w, s) })
	}
	if v.name == "checkpoint pod" && first == nil {
		check(t, os.RemoveAll(folder(t, "empty"))) // for the next one
	}
	if v.name != "start container" || first == nil {
		if err := v.do2(t, s); err != nil {
			t.Errorf("the call made again: %v (at first: %v)", err, first)
		}
	} else if is := state(t, s, theContainer(t, s)); is.Reason != "StartError" {
		t.Errorf("after the failed start: %+v", is)
	}
	for _, p := range s.Pods() {
		check(t, s.RemovePod(t.Context(), p.ID))
	}
	w.flush()
	check(t, w.empty())
}

// do2 does it again, if there is anything left to do.
func (v verb) do2(t *testing.T, s *pod.Set) error {
	if len(s.Pods()) == 0 && v.name != "run pod" {
		return nil
	}
	return v.do(t, s)
}

// What fails and cannot be undone either is taken away later, and a call of the
// same name waits for that.
func TestWhatCannotBeUndoneIsTakenAwayLater(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	w.setCue(func(_ int, name string, after bool) error {
		if name == "attach" && after || name == "detach" {
			return errs.New(errs.Timeout, "the plugin hangs")
		}
		return nil
	})
	_, err := s.RunPod(t.Context(), podConfig("web"))
	wantKind(t, err, errs.Timeout)
	if len(s.Pods()) != 0 {
		t.Errorf("it is seen: %v", s.Pods())
	}
	if _, err := s.RunPod(t.Context(), podConfig("web")); err == nil {
		t.Error("there are two of one name")
	}
	w.setCue(nil)
	w.sweep(s, func() error { w.flush(); return w.empty() })
	id := run(t, s, podConfig("web"))

	w.setCue(func(_ int, name string, _ bool) error {
		if name == "watch" || name == "remove snapshot" {
			return errs.New(errs.Internal, "the disk is full")
		}
		return nil
	})
	_, err = s.CreateContainer(t.Context(), id, containerConfig("c"))
	wantKind(t, err, errs.Internal)
	if len(s.Containers()) != 0 {
		t.Errorf("it is seen: %v", s.Containers())
	}
	w.setCue(nil)
	create(t, s, id, containerConfig("c"))
	check(t, s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}

// A power cut takes what was not written yet, and what it was made of is found.
func TestAPowerCutForgetsAMomentAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	kept := run(t, s, podConfig("kept"))
	c := create(t, s, kept, containerConfig("c"))
	check(t, s.StartContainer(t.Context(), c))
	w.flush()
	lost := run(t, s, podConfig("lost"))
	check(t, s.StartContainer(t.Context(), create(t, s, lost, withVolume("c"))))
	forgetLater(t, w, lost)
	w.reboot()
	s = w.node()
	w.sweep(s, func() error { return whole(w, s) })
	if p := only(t, s); p.ID != kept || p.State != spec.PodNotReady {
		t.Errorf("after the power cut: %+v", p)
	}
	if is := state(t, s, c); is.State != spec.Stopped || is.Reason != "ContainerStatusUnknown" {
		t.Errorf("its container: %+v", is)
	}
	check(t, s.RemovePod(t.Context(), kept))
	w.flush()
	check(t, w.empty())
}

// forgetLater makes it that nothing of a pod has come to the database.
func forgetLater(t *testing.T, w *world, id string) {
	t.Helper()
	w.flush()
	check(t, w.db.Update(t.Context(), func(tx *kv.Tx) error {
		var members []string
		err := tx.Each("podcontainer", "", func(key string, value []byte) error {
			if strings.Contains(string(value), id) {
				members = append(members, key)
			}
			return nil
		})
		for _, key := range members {
			err = errors.Join(err, tx.Delete("podcontainer", key))
		}
		return errors.Join(err, tx.Delete("pod", id))
	}))
}
