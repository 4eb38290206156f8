package span

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Trail remembers the steps of operations, for people who want to see them on
// this machine. The zero value is ready.
type Trail struct {
	mu    sync.Mutex
	steps []Step
}

// Step is one step of an operation. Duration is 0 while it goes on.
type Step struct {
	Name     string
	Depth    int // 0 is the outermost
	Started  time.Time
	Duration time.Duration
	Err      error
}

// trailLength bounds a Trail. What comes later is not remembered.
const trailLength = 256

// Steps are those so far, in the order of their beginnings.
func (t *Trail) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.steps)
}

// Follow has t remember the steps that are made with the ctx that is returned.
func Follow(ctx context.Context, t *Trail) context.Context {
	return context.WithValue(ctx, place{}, place{trail: t})
}

// place is where on a trail a ctx is. Its zero value is the key.
type place struct {
	trail *Trail
	depth int
}

func walk(ctx context.Context, step string) (context.Context, func(error)) {
	at, ok := ctx.Value(place{}).(place)
	if !ok {
		return ctx, func(error) {}
	}
	n := at.trail.begin(Step{Name: step, Depth: at.depth, Started: time.Now()})
	ctx = context.WithValue(ctx, place{}, place{trail: at.trail, depth: at.depth + 1})
	return ctx, func(err error) { at.trail.end(n, err) }
}

func (t *Trail) begin(step Step) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.steps) == trailLength {
		return -1
	}
	t.steps = append(t.steps, step)
	return len(t.steps) - 1
}

func (t *Trail) end(n int, err error) {
	if n < 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	step := &t.steps[n]
	step.Duration, step.Err = max(time.Since(step.Started), 1), err
}
