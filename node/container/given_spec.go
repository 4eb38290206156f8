package container

import (
	"context"

	"berth/base/errs"
	"berth/spec"
)

// SetGivenSpec changes the OCI spec of a given container that has no task.
// errs.Conflict: it has one.
func (s *Set) SetGivenSpec(ctx context.Context, namespace, id string, oci []byte) error {
	c, err := s.findGiven(namespace, id)
	if err != nil {
		return err
	}
	_, err = s.UpdateGiven(ctx, namespace, id, func(g *spec.Given) error {
		if c.given.Load() == nil || c.task.Load() != nil {
			return errs.New(errs.Conflict, "it has been started")
		}
		next := spec.Opaque{Value: oci}
		if g.Spec != nil {
			next.Type = g.Spec.Type
		}
		g.Spec = &next
		return nil
	})
	return err
}
