package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// Stats tells what containers use now; where refs is empty all running ones but
// those that are nobody's, such as a pod's pause. One that does not run uses
// nothing.
func (s *Set) Stats(ctx context.Context, refs []string) ([]spec.Stats, error) {
	chosen := make([]*container, 0, len(refs))
	for _, ref := range refs {
		c, err := s.find(ref)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, c)
	}
	if len(refs) == 0 {
		for _, c := range s.all() {
			if view := c.get(); alive(view.State.Status) && !view.Quiet {
				chosen = append(chosen, c)
			}
		}
	}
	list := make([]spec.Stats, 0, len(chosen))
	for _, c := range chosen {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		stats, err := s.measure(c)
		if err != nil {
			return nil, err
		}
		list = append(list, stats)
	}
	return list, nil
}

func (s *Set) measure(c *container) (stats spec.Stats, err error) {
	view := c.get()
	if alive(view.State.Status) {
		stats, err = s.Meter.Read(c.cgroup(), view.State.Pid)
		if err != nil && !errors.Is(err, errs.NotFound) { // it has just ended
			return stats, fmt.Errorf("stats of container %s: %w", view.Name, err)
		}
	}
	stats.ID, stats.Name = view.ID, view.Name
	if stats.Time.IsZero() {
		stats.Time = time.Now().UTC()
	}
	return stats, nil
}
