package container

import (
	"context"
	"errors"
	"fmt"

	"berth/base/errs"
	"berth/spec"
)

// Get returns one container. errs.NotFound, or errs.Conflict where ref fits
// several. What it holds must not be changed.
func (s *Set) Get(_ context.Context, ref string) (spec.Container, error) {
	c, err := s.find(ref)
	if err != nil {
		return spec.Container{}, err
	}
	view := *c.get()
	view.Execs = s.execsOf(c.id)
	return view, nil
}

// List returns containers, newest first: the running ones, or all. Filters:
// id name label status ancestor exited before since network volume health
// publish expose pod. A filter on the state chooses from all. What the list holds
// must not be changed.
func (s *Set) List(ctx context.Context, all bool, filter spec.Filter) ([]spec.Container, error) {
	fits, err := s.compile(ctx, filter)
	if err != nil {
		return nil, err
	}
	all = all || len(filter["status"]) > 0 || len(filter["exited"]) > 0 || len(filter["before"]) > 0 || len(filter["since"]) > 0
	list := []spec.Container{}
	for _, c := range s.all() {
		view := c.get()
		if (all || busy(view.State.Status)) && !view.Quiet && fits(view) {
			list = append(list, *view)
		}
	}
	return list, nil
}

// Sizes counts the disk that the container takes.
func (s *Set) Sizes(ctx context.Context, ref string) (spec.ContainerSizes, error) {
	c, err := s.find(ref)
	if err != nil {
		return spec.ContainerSizes{}, err
	}
	key, err := s.rootKey(ctx, c)
	if err != nil {
		return spec.ContainerSizes{}, fmt.Errorf("sizes of container %s: %w", c.name(), err)
	}
	own, err := s.Snapshots.Usage(ctx, key)
	if err != nil {
		return spec.ContainerSizes{}, fmt.Errorf("sizes of container %s: %w", c.name(), err)
	}
	sizes := spec.ContainerSizes{RW: own.Size, RootFS: own.Size}
	image, err := s.Images.Get(ctx, imageOf(c.get()))
	if err != nil && !errors.Is(err, errs.NotFound) {
		return spec.ContainerSizes{}, err
	}
	sizes.RootFS += image.Size
	return sizes, nil
}
