package container

import (
	"context"
	"fmt"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/spec"
)

// Update changes limits and restart policy, of a running container too.
func (s *Set) Update(ctx context.Context, ref string, update spec.ContainerUpdate) (spec.Container, error) {
	c, err := s.lock(ctx, ref)
	if err != nil {
		return spec.Container{}, err
	}
	err = s.finish(ctx, func(ctx context.Context) error {
		defer c.op.Unlock()
		return s.update(ctx, c, update)
	})
	if err != nil {
		return spec.Container{}, fmt.Errorf("update container %s: %w", c.name(), err)
	}
	return *c.get(), nil
}

func (s *Set) update(ctx context.Context, c *container, update spec.ContainerUpdate) error {
	view := c.get()
	if view.Namespace != "" {
		return errs.New(errs.Unsupported, "it was made by another client: update it by that one")
	}
	if view.State.Status == spec.Removing || view.State.Status == spec.Dead {
		return errs.New(errs.Conflict, "it is being removed")
	}
	config := view.Config
	if update.Restart != nil {
		config.Restart = *update.Restart
		config.Restart.Name = orElse(config.Restart.Name, "no")
		if err := checkRestart(config.Restart, config.AutoRemove); err != nil {
			return err
		}
	}
	if update.Resources != nil {
		config.Resources = mergeResources(config.Resources, *update.Resources)
		limits, err := bundle.Resources(config.Resources, s.Host)
		if err != nil {
			return err
		}
		if alive(view.State.Status) {
			r, err := s.runtime(view)
			if err != nil {
				return err
			}
			if err := r.Update(ctx, c.id, limits); err != nil {
				return err
			}
		}
	}
	view = c.change(func(c *spec.Container) { c.Config = config })
	s.publish(view, "update")
	return s.db.write(ctx, c)
}

// mergeResources lays the fields that are set over the old ones.
func mergeResources(old, next spec.Resources) spec.Resources {
	override(&old.Memory, next.Memory)
	override(&old.MemoryReservation, next.MemoryReservation)
	override(&old.MemorySwap, next.MemorySwap)
	override(&old.OOMKillDisable, next.OOMKillDisable)
	override(&old.CPUShares, next.CPUShares)
	override(&old.CpusetCPUs, next.CpusetCPUs)
	override(&old.CpusetMems, next.CpusetMems)
	override(&old.Pids, next.Pids)
	override(&old.BlkioWeight, next.BlkioWeight)
	if next.NanoCPUs != 0 { // one way to say it drops the other
		old.NanoCPUs, old.CPUPeriod, old.CPUQuota = next.NanoCPUs, 0, 0
	}
	if next.CPUPeriod != 0 || next.CPUQuota != 0 {
		old.NanoCPUs = 0
	}
	override(&old.CPUPeriod, next.CPUPeriod)
	override(&old.CPUQuota, next.CPUQuota)
	overrideList(&old.DeviceReadBps, next.DeviceReadBps)
	overrideList(&old.DeviceWriteBps, next.DeviceWriteBps)
	overrideList(&old.DeviceReadIOps, next.DeviceReadIOps)
	overrideList(&old.DeviceWriteIOps, next.DeviceWriteIOps)
	return old
}

func override[T comparable](old *T, next T) {
	var zero T
	if next != zero {
		*old = next
	}
}

func overrideList[T any](old *[]T, next []T) {
	if len(next) > 0 {
		*old = next
	}
}
