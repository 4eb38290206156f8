package container_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/node/container"
)

// A node that is told to end does not wait for containers that have long to
// end. They go on.
func TestANodeEndsWhileContainersAreStopped(t *testing.T) {
	for name, stop := range map[string]func(n *node) error{
		"for an hour": func(n *node) error { seconds := 3600; return n.Stop(context.Background(), "web1", &seconds, "") },
		"for ever":    func(n *node) error { seconds := -1; return n.Stop(context.Background(), "web1", &seconds, "") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world, n *node) {
				w.runs(w.inPod("web1", "/bin/sleep", "100000"))
				var stopping sync.WaitGroup
				var err error
				stopping.Go(func() { err = stop(n) })
				synctest.Wait()
				begun := time.Now()
				w.shut()
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("the node took %v to end", took)
				}
				stopping.Wait()
				if err == nil {
					t.Error("the stop says that the container has ended")
				}
				n = w.open()
				if state, err := n.Task(t.Context(), pods, "web1", ""); err != nil || state.Status != container.TaskRunning {
					t.Errorf("afterwards it is %+v, %v", state, err)
				}
				w.tidy()
			})
		})
	}
}

// How long a runtime may take is its own affair: the node has no bound besides.
func TestARuntimeThatTakesLong(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		w.runtime.Before = func(ctx context.Context, op, _ string) {
			if op == "run" {
				select {
				case <-time.After(time.Hour):
				case <-ctx.Done():
				}
			}
		}
		w.runs(w.inPod("web1", "/bin/sleep", "100000"))
		w.ok(n.Remove(t.Context(), pods+"+web1", true, false))
		time.Sleep(2 * time.Second)
		w.wantNothing()
	})
}

// When nobody is there any more to be told what can be forgotten, a node that
// ends does not try that for each.
func TestANodeEndsWithoutItsKeeper(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for i := range 20 {
			w.runs(w.inPod(fmt.Sprint("web", i), "/bin/true"))
		}
		synctest.Wait()
		w.runtime.Before = func(ctx context.Context, op, _ string) {
			if op == "forget" {
				<-ctx.Done()
			}
		}
		begun := time.Now()
		w.shut()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("the node took %v to end", took)
		}
		w.runtime.Before = nil
		w.open()
		w.tidy()
		w.wantNothing()
	})
}
