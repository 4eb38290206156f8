package container_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

// TestEverybodyAtOnce: whatever people do to the same containers at the same
// time, errors are of the kinds that say why, nobody waits for ever, and
// nothing is left at the end.
func TestEverybodyAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		zero := 0
		verbs := []func(name string) error{
			func(name string) error {
				cfg := everything()
				cfg.Name, cfg.AutoRemove = name, rand.N(3) == 0
				_, err := n.Create(ctx, cfg)
				return err
			},
			func(name string) error { return n.Start(ctx, name) },
			func(name string) error { return n.Stop(ctx, name, &zero, "") },
			func(name string) error { return n.Kill(ctx, name, "") },
			func(name string) error { return n.Restart(ctx, name, &zero, "") },
			func(name string) error { return n.Pause(ctx, name) },
			func(name string) error { return n.Unpause(ctx, name) },
			func(name string) error { return n.Remove(ctx, name, rand.N(2) == 0, true) },
			func(name string) error {
				ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				_, err := n.Wait(ctx, name, container.NextExit)
				return err
			},
			func(name string) error {
				e, err := n.CreateExec(ctx, name, spec.ExecConfig{Command: []string{"/bin/true"}, Detach: true})
				if err == nil {
					_, err = n.StartExec(ctx, e.ID)
				}
				return err
			},
			func(name string) error {
				_, err := n.Update(ctx, name, spec.ContainerUpdate{Resources: &spec.Resources{Pids: 5}})
				return err
			},
			func(string) error { _, err := n.List(ctx, true, nil); return err },
			func(name string) error {
				if c, err := n.Get(ctx, name); err == nil {
					w.runtime.End(c.ID, 3)
				}
				return nil
			},
		}
		w.crowd(ctx, 60, verbs, errs.Invalid)
	})
}

// crowd has eight people do so many things each, and tidies up after them. An
// error is of a kind that says why, or one of those besides.
func (w *world) crowd(ctx context.Context, turns int, verbs []func(name string) error, besides ...errs.Kind) {
	names := []string{"a", "b", "c"}
	fine := append(besides, "", errs.NotFound, errs.Conflict, errs.Exists, errs.Timeout)
	var people sync.WaitGroup
	for range 8 {
		people.Go(func() {
			for range turns {
				err := verbs[rand.N(len(verbs))](names[rand.N(len(names))])
				if !slices.Contains(fine, errs.KindOf(err)) {
					w.t.Errorf("%v", err)
				}
				time.Sleep(time.Duration(rand.N(3)) * time.Millisecond)
			}
		})
	}
	people.Wait()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		w.t.Error("somebody waited for ever")
	}
	time.Sleep(time.Second)
	w.tidy()
	w.wantNothing()
}

func BenchmarkList(b *testing.B) {
	w := newWorld(b).open()
	for range 100 {
		if _, err := w.Create(b.Context(), config("/bin/sleep", "1000")); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if list, err := w.List(b.Context(), true, nil); err != nil || len(list) != 100 {
			b.Fatal(err)
		}
	}
}

// TestClientsAtOnce is the same with clients that write their specs, and people
// who do not know of them.
func TestClientsAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		zero := 0
		verbs := []func(id string) error{
			func(id string) error {
				g := written("moby", id, "/bin/sleep", "1000")
				if rand.N(2) == 0 {
					g.Labels = map[string]string{statusLabel: "running", policyLabel: "always"}
				}
				_, err := n.CreateGiven(ctx, g)
				return err
			},
			func(id string) error { _, err := n.CreateTask(ctx, "moby", id, request); return err },
			func(id string) error { _, err := n.StartTask(ctx, "moby", id, ""); return err },
			func(id string) error { return n.KillTask(ctx, "moby", id, "", syscall.SIGKILL, true) },
			func(id string) error { _, err := n.DeleteTask(ctx, "moby", id); return err },
			func(id string) error { return n.RemoveGiven(ctx, "moby", id) },
			func(id string) error { return n.PauseTask(ctx, "moby", id) },
			func(id string) error { return n.ResumeTask(ctx, "moby", id) },
			func(id string) error {
				return n.AddExec(ctx, "moby", id, container.ExecRequest{ID: "e", Process: process("/bin/sleep", "0.01")})
			},
			func(id string) error { _, err := n.StartTask(ctx, "moby", id, "e"); return err },
			func(id string) error { _, err := n.DeleteExec(ctx, "moby", id, "e"); return err },
			func(id string) error { return n.KillTask(ctx, "moby", id, "e", syscall.SIGKILL, false) },
			func(id string) error {
				ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				_, err := n.WaitTask(ctx, "moby", id, []string{"", "e"}[rand.N(2)])
				return err
			},
			func(id string) error {
				_, err := n.UpdateGiven(ctx, "moby", id, func(g *spec.Given) error {
					g.Labels[stoppedLabel] = []string{"true", "false"}[rand.N(2)]
					return nil
				})
				return err
			},
			func(string) error { _, err := n.Tasks(ctx, ""); return err },
			func(id string) error { return n.Stop(ctx, id, &zero, "") },
			func(id string) error { return n.Start(ctx, id) },
			func(id string) error { return n.Remove(ctx, id, true, true) },
			func(id string) error { w.runtime.End("moby+"+id, 3); return nil },
		}
		w.crowd(ctx, 100, verbs)
	})
}
