package container_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
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
		names := []string{"a", "b", "c"}
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
		var people sync.WaitGroup
		for range 8 {
			people.Go(func() {
				for range 60 {
					err := verbs[rand.N(len(verbs))](names[rand.N(len(names))])
					switch errs.KindOf(err) {
					case "", errs.NotFound, errs.Conflict, errs.Exists, errs.Timeout, errs.Invalid:
					default:
						t.Errorf("%v", err)
					}
					time.Sleep(time.Duration(rand.N(3)) * time.Millisecond)
				}
			})
		}
		people.Wait()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Error("somebody waited for ever")
		}
		time.Sleep(time.Second)
		w.tidy()
		w.wantNothing()
	})
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
