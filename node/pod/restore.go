package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/spec"
)

// RestorePod makes a pod and its containers of what CheckpointPod has written
// to a folder, and gives their ids, those of the containers in the order of
// containers; StartContainer has each go on. On failure nothing of it is left.
//
// errs.Invalid: not such a folder, or not of these containers. errs.Exists:
// there is a pod of that name. errs.Conflict: the checkpoint was made by
// another runtime, or of containers that were others. errs.Unsupported: the pod
// has a user namespace.
func (s *Set) RestorePod(ctx context.Context, dir string, config spec.PodConfig, containers []spec.PodContainerConfig) (id string, ids []string, err error) {
	if err := check(&config); err != nil {
		return "", nil, err
	}
	if err := restorable(&config); err != nil {
		return "", nil, fmt.Errorf("restore pod %s/%s: %w", config.Namespace, config.Name, err)
	}
	from, err := readPod(dir)
	if err != nil {
		return "", nil, fmt.Errorf("restore pod %s/%s: %w", config.Namespace, config.Name, err)
	}
	if err := from.isOf(containers); err != nil {
		return "", nil, fmt.Errorf("restore pod %s/%s: %w", config.Namespace, config.Name, err)
	}
	runtime, err := s.Runtimes(config.Handler)
	if err != nil {
		return "", nil, fmt.Errorf("runtime of pod %s/%s: %w", config.Namespace, config.Name, err)
	}
	if runtime != from.Runtime {
		return "", nil, errs.New(errs.Conflict, "restore pod %s/%s: runtime %s has made the checkpoint, not %s", config.Namespace, config.Name, from.Runtime, runtime)
	}
	err = s.through(ctx, checkpointLimit, func(ctx context.Context) (err error) {
		if id, err = s.runNew(ctx, &config, runtime); err != nil {
			return err
		}
		if ids, err = s.restoreContainers(ctx, id, dir, from, containers); err != nil {
			return errors.Join(err, s.RemovePod(context.WithoutCancel(ctx), id))
		}
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	return id, ids, nil
}

// runNew makes a pod that there is not.
func (s *Set) runNew(ctx context.Context, config *spec.PodConfig, runtime string) (string, error) {
	for {
		run, err := s.reserve(ctx, config, runtime, true)
		if err != nil {
			return "", err
		}
		id, err := run.wait(context.WithoutCancel(ctx))
		if !errors.Is(err, errUnmade) { // else its name is free now
			return id, err
		}
	}
}

func (s *Set) restoreContainers(ctx context.Context, id, dir string, from dumpedPod, containers []spec.PodContainerConfig) ([]string, error) {
	p, err := s.find(id)
	if err != nil {
		return nil, err
	}
	scratch := filepath.Join(s.Restored, p.id)
	if err := errors.Join(s.layShm(ctx, p, dir, scratch), os.RemoveAll(scratch)); err != nil {
		return nil, err
	}
	podConfig := p.get().Config
	var ids []string
	for i := range containers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := checkContainer(&podConfig, &containers[i]); err != nil {
			return nil, err
		}
		create, err := s.reserveMember(ctx, p, &containers[i], filepath.Join(dir, from.Containers[containers[i].Name]))
		if err != nil {
			return nil, err
		}
		made, err := create.wait(context.WithoutCancel(ctx))
		if err != nil {
			return nil, volumeFirst(err)
		}
		ids = append(ids, made)
	}
	if err := p.op.Lock(ctx); err != nil {
		return nil, err
	}
	defer p.op.Unlock()
	return ids, s.change(p, func(r *podRecord) { r.Restoring = false })
}

// restorable fails with errs.Unsupported where no container of such a pod can go
// on from a checkpoint.
func restorable(config *spec.PodConfig) error {
	if idmap(config) != nil {
		return errs.New(errs.Unsupported, "containers in a user namespace of their own cannot be made of a checkpoint")
	}
	return nil
}

func readPod(dir string) (from dumpedPod, err error) {
	if err := readPart(dir, podPart, &from); err != nil {
		return from, err
	}
	for name, folder := range from.Containers {
		if folder == "" || folder != filepath.Base(folder) || !filepath.IsLocal(folder) {
			return from, errs.New(errs.Invalid, "%s: container %s lies in %q", filepath.Join(dir, podPart), name, folder)
		}
	}
	return from, nil
}

// isOf says whether these are the containers of the checkpoint.
func (d dumpedPod) isOf(containers []spec.PodContainerConfig) error {
	asked := map[string]bool{}
	for _, c := range containers {
		switch {
		case asked[c.Name]:
			return errs.New(errs.Invalid, "container %s is named twice", c.Name)
		case d.Containers[c.Name] == "":
			return errs.New(errs.Invalid, "the checkpoint has no container %q", c.Name)
		}
		asked[c.Name] = true
	}
	for name := range d.Containers {
		if !asked[name] {
			return errs.New(errs.Invalid, "the checkpoint has container %s too, of which nothing is said", name)
		}
	}
	return nil
}

// Annotations that make an image one of a checkpoint: its layers are the parts.
var checkpointAnnotations = []string{
	"io.kubernetes.cri-o.annotations.checkpoint.name",
	"org.criu.checkpoint.container.name",
	"checkpointctl.annotation.checkpoint.name",
}

// errNoRestore is of who creates a container of a checkpoint where nobody has
// allowed that.
var errNoRestore = errs.New(errs.Conflict,
	"it is a checkpoint; containers are made of those where the node's configuration says restore_by_create, since a checkpoint says by itself which rights its processes have")

// foundation finds what a container stands on: its image, or a checkpoint and
// that one's image.
func (s *Set) foundation(ctx context.Context, m *member) (Image, *origin, error) {
	c := &m.rec.Load().Container.Config
	source := m.source
	if source == "" && filepath.IsAbs(c.Image) {
		source = c.Image
	}
	var image Image
	var err error
	if source != c.Image {
		if image, err = s.resolve(ctx, c.Image); err != nil {
			return image, nil, err
		}
	}
	if source == "" {
		is, err := s.isCheckpoint(ctx, c, image)
		if err != nil || !is {
			return image, nil, err
		}
	}
	if m.source == "" && !s.RestoreByCreate {
		return image, nil, fmt.Errorf("image %s: %w", c.Image, errNoRestore)
	}
	pod := m.pod.get()
	if err := restorable(&pod.Config); err != nil {
		return image, nil, err
	}
	from, err := s.take(ctx, m, source, image)
	if err != nil {
		return image, nil, err
	}
	if from.about.Runtime != pod.Runtime {
		return image, nil, errs.New(errs.Conflict, "runtime %s has made the checkpoint, not %s", from.about.Runtime, pod.Runtime)
	}
	if m.source == "" {
		image, err = s.resolveAny(ctx, from.about.ImageRef, from.about.ImageID, from.about.ImageName)
		return image, from, err
	}
	from.exact = true
	if from.about.ImageID != image.ID {
		return image, nil, errs.New(errs.Conflict, "the checkpoint is of image %s, not %s", from.about.ImageRef, image.Ref)
	}
	return image, from, nil
}

// isCheckpoint says whether the image of a container is one of a checkpoint.
// Where it can be none that makes containers only one that has nothing to run
// is looked at.
func (s *Set) isCheckpoint(ctx context.Context, c *spec.PodContainerConfig, image Image) (bool, error) {
	runs := len(c.Command) + len(c.Args) + len(image.Config.Entrypoint) + len(image.Config.Command)
	if !s.RestoreByCreate && runs > 0 {
		return false, nil
	}
	annotations, err := s.Images.Annotations(ctx, image.ID)
	if err != nil {
		return false, fmt.Errorf("image %s: %w", c.Image, err)
	}
	return slices.ContainsFunc(checkpointAnnotations, func(name string) bool { return annotations[name] != "" }), nil
}

// resolveAny finds the image that one of several names is of.
func (s *Set) resolveAny(ctx context.Context, refs ...string) (Image, error) {
	for _, ref := range refs {
		if ref == "" {
			continue
		}
		image, err := s.resolve(ctx, ref)
		if !errors.Is(err, errs.NotFound) {
			return image, err
		}
	}
	return Image{}, errs.New(errs.NotFound, "the checkpoint is of image %s, which has to be pulled first", strings.Join(slices.Compact(refs), ", "))
}
