package pod_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/pod"
	"berth/spec"
)

// watchStates looks at a container at every step that the rooms take, and wants
// to see it only as allowed says.
func (w *world) watchStates(s *pod.Set, name string, allowed func(spec.PodContainer) bool) (seen func() int) {
	var mu sync.Mutex
	looks := 0
	w.setCue(func(_ int, step string, after bool) error {
		for _, c := range s.Containers() {
			if c.Config.Name != name {
				continue
			}
			mu.Lock()
			looks++
			mu.Unlock()
			if !allowed(c) {
				w.t.Errorf("at %s (after: %v) it is %s, code %d, %s", step, after, c.State, c.ExitCode, c.Reason)
			}
		}
		return nil
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return looks
	}
}

// Who lists containers while one is being made never sees it as one that has
// ended, nor as one that has ended in another way than it has while it goes.
func TestWhatIsSeenOfAContainerThatComesAndGoes(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	seen := w.watchStates(s, "c", func(c spec.PodContainer) bool { return c.State == spec.Created })
	c := create(t, s, id, containerConfig("c"))
	if seen() == 0 {
		t.Error("nobody looked")
	}
	w.setCue(nil)
	check(t, s.StartContainer(t.Context(), c))
	w.mu.Lock()
	w.givens[c].end(7)
	w.mu.Unlock()
	finished := state(t, s, c).Finished
	seen = w.watchStates(s, "c", func(c spec.PodContainer) bool {
		return c.State == spec.Stopped && c.ExitCode == 7 && c.Reason == "Error" && c.Finished.Equal(finished)
	})
	check(t, s.RemoveContainer(t.Context(), c))
	if seen() < 3 {
		t.Errorf("%d looks", seen())
	}

	w.setCue(nil)
	c = create(t, s, id, containerConfig("c")) // one that was never started
	w.watchStates(s, "c", func(c spec.PodContainer) bool { return c.State == spec.Created })
	check(t, s.RemoveContainer(t.Context(), c))

	w.setCue(nil)
	c = create(t, s, id, containerConfig("c"))
	check(t, s.StartContainer(t.Context(), c))
	w.watchStates(s, "c", func(c spec.PodContainer) bool {
		return c.State == spec.Running || c.State == spec.Stopped && c.ExitCode == 137
	})
	check(t, s.RemovePod(t.Context(), id)) // and one that runs
	w.setCue(nil)
	w.flush()
	check(t, w.empty())
}

// How a container ended is known while its removal fails, and to the node that
// goes on with it.
func TestARemovalThatFailsForgetsNothing(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	check(t, s.StartContainer(t.Context(), c))
	w.mu.Lock()
	w.givens[c].end(7)
	w.mu.Unlock()
	stuck := errors.New("stuck")
	w.setCue(func(_ int, name string, _ bool) error {
		if name == "remove snapshot" {
			return stuck
		}
		return nil
	})
	if err := s.RemoveContainer(t.Context(), c); !errors.Is(err, stuck) {
		t.Error(err)
	}
	for range 2 {
		if is := state(t, s, c); is.State != spec.Stopped || is.ExitCode != 7 || is.Reason != "Error" {
			t.Errorf("it is %+v", is)
		}
		w.end()
		check(t, s.Close())
		s = w.node()
	}
	w.setCue(nil)
	check(t, s.RemoveContainer(t.Context(), c), s.RemovePod(t.Context(), id))
	w.flush()
	check(t, w.empty())
}

// A start that was given up does not go on behind its client's back.
func TestAStartThatWasGivenUp(t *testing.T) {
	w := newWorld(t)
	s := w.node(func(c *pod.Config) { c.Timeout = 300 * time.Millisecond })
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	w.setCue(func(_ int, name string, after bool) error {
		if name == "run" && after { // it is done too late
			<-time.After(400 * time.Millisecond)
			return context.DeadlineExceeded
		}
		return nil
	})
	if err := s.StartContainer(t.Context(), c); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	w.setCue(nil)
	if is := state(t, s, c); is.State != spec.Stopped || is.Reason != "StartError" {
		t.Errorf("it is %+v", is)
	}
	if is := w.status(c); is != spec.Stopped {
		t.Errorf("in truth it is %s", is)
	}
	check(t, s.RemovePod(t.Context(), id))
}

func (w *world) status(id string) spec.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.givens[id].state.Status
}

// What was being started when the node was told to end is, to the next one, what
// has become of it.
func TestAStartInTheMiddleOfTheNodesEnd(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprint("done ", done), func(t *testing.T) {
			w := newWorld(t)
			s := w.node()
			id := run(t, s, podConfig("web"))
			c := create(t, s, id, containerConfig("c"))
			w.setCue(func(_ int, name string, after bool) error {
				if name == "run" && after == done {
					w.end()
					return context.Canceled
				}
				return nil
			})
			if err := s.StartContainer(t.Context(), c); err == nil {
				t.Error("it was started")
			}
			w.setCue(nil)
			check(t, s.Close())
			s = w.node()
			if is := state(t, s, c); is.State != w.status(c) || done != (is.State == spec.Running) {
				t.Errorf("it is %s, in truth %s", is.State, w.status(c))
			}
			check(t, s.StartContainer(t.Context(), c)) // nobody was told that it cannot
			check(t, s.StopPod(t.Context(), id))
			if is := w.status(c); is != spec.Stopped {
				t.Errorf("after the stop of its pod it is %s", is)
			}
			check(t, s.RemovePod(t.Context(), id))
			w.flush()
			check(t, w.empty())
		})
	}
}

// A container whose start has failed is ended with its pod whatever its runtime
// was at.
func TestAFailedStartIsStoppedToo(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	c := create(t, s, id, containerConfig("c"))
	w.setCue(func(_ int, name string, after bool) error {
		if name == "run" && after {
			return errs.New(errs.Internal, "it says that it failed")
		}
		return nil
	})
	if s.StartContainer(t.Context(), c) == nil {
		t.Error("it was started")
	}
	w.setCue(nil)
	check(t, s.StopContainer(t.Context(), c, time.Second))
	if is := w.status(c); is != spec.Stopped {
		t.Errorf("after the stop it is %s", is)
	}
	check(t, s.RemovePod(t.Context(), id))
}

// A kubelet that is killed while it starts a container makes the next attempt
// when it comes back: there are not two then.
func TestTheNextAttemptEndsOneThatNobodyWasToldOf(t *testing.T) {
	w := newWorld(t)
	s := w.node()
	id := run(t, s, podConfig("web"))
	first := create(t, s, id, containerConfig("c"))
	reached, goOn := make(chan struct{}), make(chan struct{})
	w.setCue(func(_ int, name string, after bool) error {
		if name == "run" && !after {
			close(reached)
			<-goOn
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error, 1)
	go func() { given <- s.StartContainer(ctx, first) }()
	<-reached
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("the client that went away got %v", err)
	}
	w.setCue(nil)
	next := containerConfig("c")
	next.Attempt = 1
	made := make(chan string, 1)
	go func() { made <- create(t, s, id, next) }()
	close(goOn)
	second := <-made
	if is := w.status(first); is != spec.Stopped {
		t.Errorf("the first attempt is %s", is)
	}
	check(t, s.StartContainer(t.Context(), second))
	next.Attempt = 2 // what was told of goes on: it is for kubelet to end it
	create(t, s, id, next)
	if is := w.status(second); is != spec.Running {
		t.Errorf("the second attempt is %s", is)
	}
	check(t, s.RemovePod(t.Context(), id))
}
