package rest

import (
	"context"

	"berth/base/errs"
	"berth/node/container"
	"berth/spec"
)

type listing struct {
	Chosen
	All bool `query:"all" doc:"those too that do not run"`
}

type ending struct {
	Named
	Timeout optional[int] `query:"timeout" doc:"seconds before it is killed; negative: never; absent: as the container says"`
	Signal  string        `query:"signal" doc:"name or number; absent: the container's own"`
}

type removal struct {
	Named
	Force   bool `query:"force" doc:"kill it if it runs"`
	Volumes bool `query:"volumes" doc:"its anonymous volumes too"`
}

type updating struct {
	Named
	Body spec.ContainerUpdate
}

func (r *routes) containers() {
	set := r.server.Containers
	create(r, "POST /containers", "ContainerCreate", "Make a container of an image that is here",
		func(ctx context.Context, in *struct{ Body spec.ContainerConfig }) (spec.Container, error) {
			return set.Create(ctx, in.Body)
		})
	answer(r, "GET /containers", "ContainerList", "List containers, newest first",
		func(ctx context.Context, in *listing) ([]spec.Container, error) {
			filter, err := in.filter()
			if err != nil {
				return nil, err
			}
			return some(set.List(ctx, in.All, filter))
		})
	answer(r, "GET /containers/{ref}", "ContainerGet", "Describe a container",
		func(ctx context.Context, in *Named) (spec.Container, error) { return set.Get(ctx, in.Ref) })
	answer(r, "PATCH /containers/{ref}", "ContainerUpdate", "Change limits and restart policy",
		func(ctx context.Context, in *updating) (spec.Container, error) {
			return set.Update(ctx, in.Ref, in.Body)
		})
	act(r, "DELETE /containers/{ref}", "ContainerRemove", "Remove a container",
		func(ctx context.Context, in *removal) error { return set.Remove(ctx, in.Ref, in.Force, in.Volumes) })
	answer(r, "POST /containers/prune", "ContainerPrune", "Remove the containers that do not run",
		func(ctx context.Context, in *Chosen) (spec.Pruned, error) {
			filter, err := in.filter()
			if err != nil {
				return spec.Pruned{}, err
			}
			return pruned(set.Prune(ctx, filter))
		})
	act(r, "POST /containers/{ref}/rename", "ContainerRename", "Give a container another name",
		func(ctx context.Context, in *struct {
			Named
			Name string `query:"name" required:"true"`
		},
		) error {
			return set.Rename(ctx, in.Ref, in.Name)
		})
	r.lifecycle()
	r.observation()
}

func (r *routes) lifecycle() {
	set := r.server.Containers
	act(r, "POST /containers/{ref}/start", "ContainerStart", "Start a container",
		func(ctx context.Context, in *Named) error { return set.Start(ctx, in.Ref) })
	act(r, "POST /containers/{ref}/stop", "ContainerStop", "Stop a container: a signal, then a kill",
		func(ctx context.Context, in *ending) error {
			return set.Stop(ctx, in.Ref, in.Timeout.pointer(), in.Signal)
		})
	act(r, "POST /containers/{ref}/restart", "ContainerRestart", "Stop and start a container",
		func(ctx context.Context, in *ending) error {
			return set.Restart(ctx, in.Ref, in.Timeout.pointer(), in.Signal)
		})
	act(r, "POST /containers/{ref}/kill", "ContainerKill", "Send a signal to a container's first process",
		func(ctx context.Context, in *struct {
			Named
			Signal string `query:"signal" doc:"name or number; KILL when absent"`
		},
		) error {
			return set.Kill(ctx, in.Ref, in.Signal)
		})
	act(r, "POST /containers/{ref}/pause", "ContainerPause", "Freeze a container",
		func(ctx context.Context, in *Named) error { return set.Pause(ctx, in.Ref) })
	act(r, "POST /containers/{ref}/unpause", "ContainerUnpause", "Thaw a container",
		func(ctx context.Context, in *Named) error { return set.Unpause(ctx, in.Ref) })
	answer(r, "GET /containers/{ref}/wait", "ContainerWait", "Wait for the end of a container",
		func(ctx context.Context, in *struct {
			Named
			Condition string `query:"condition" enum:"not-running,next-exit,removed" default:"not-running"`
		},
		) (spec.Exit, error) {
			return set.Wait(ctx, in.Ref, in.Condition)
		})
	act(r, "POST /containers/{ref}/resize", "ContainerResize", "Set the size of a container's terminal",
		func(ctx context.Context, in *struct {
			Named
			Body spec.Size
		},
		) error {
			return set.Resize(ctx, in.Ref, in.Body)
		})
}

func (r *routes) observation() {
	set := r.server.Containers
	answer(r, "GET /containers/{ref}/sizes", "ContainerSizes", "Count the disk that a container takes",
		func(ctx context.Context, in *Named) (spec.ContainerSizes, error) { return set.Sizes(ctx, in.Ref) })
	answer(r, "GET /containers/{ref}/ports", "ContainerPorts", "List a container's published ports",
		func(ctx context.Context, in *Named) ([]spec.PortMapping, error) {
			c, err := set.Get(ctx, in.Ref)
			return some(c.Ports, err)
		})
	answer(r, "GET /containers/{ref}/top", "ContainerTop", "List a container's processes",
		func(ctx context.Context, in *struct {
			Named
			Args []string `query:"arg,explode" doc:"arguments of ps(1)"`
		},
		) (spec.ProcessTable, error) {
			return set.Top(ctx, in.Ref, in.Args)
		})
	answer(r, "GET /containers/{ref}/changes", "ContainerChanges", "List the paths that differ from the image",
		func(ctx context.Context, in *Named) ([]spec.Change, error) { return some(set.Changes(ctx, in.Ref)) })
	create(r, "POST /containers/{ref}/commit", "ContainerCommit", "Make an image of a container",
		func(ctx context.Context, in *struct {
			Named
			Body spec.CommitRequest
		},
		) (spec.Image, error) {
			return set.Commit(ctx, in.Ref, in.Body)
		})
}

// pruned makes the empty list of what was removed a list.
func pruned(p spec.Pruned, err error) (spec.Pruned, error) {
	p.Removed, err = some(p.Removed, err)
	return p, err
}

func (r *routes) execs() {
	set := r.server.Containers
	create(r, "POST /containers/{ref}/execs", "ExecCreate", "Prepare a further process in a running container",
		func(ctx context.Context, in *struct {
			Named
			Body spec.ExecConfig
		},
		) (spec.Exec, error) {
			return set.CreateExec(ctx, in.Ref, in.Body)
		})
	answer(r, "GET /execs/{ref}", "ExecGet", "Describe an exec",
		func(ctx context.Context, in *Named) (spec.Exec, error) { return set.GetExec(ctx, in.Ref) })
	answer(r, "GET /execs/{ref}/wait", "ExecWait", "Wait for the end of an exec",
		func(ctx context.Context, in *Named) (spec.Exec, error) { return set.WaitExec(ctx, in.Ref) })
	act(r, "POST /execs/{ref}/resize", "ExecResize", "Set the size of an exec's terminal",
		func(ctx context.Context, in *struct {
			Named
			Body spec.Size
		},
		) error {
			return set.ResizeExec(ctx, in.Ref, in.Body)
		})
	act(r, "POST /execs/{ref}/start", "ExecDetached", "Start an exec that was made to be detached",
		func(ctx context.Context, in *Named) error { return startDetached(ctx, set, in.Ref) })
}

func startDetached(ctx context.Context, set Executor, id string) error {
	exec, err := set.GetExec(ctx, id)
	if err != nil {
		return err
	}
	if !exec.Config.Detach {
		return errs.New(errs.Conflict, "exec %s has streams: start it over a WebSocket at %s/execs/%s/attach, or create it with detach", id, prefix, id)
	}
	session, err := set.StartExec(ctx, id)
	if err != nil {
		return err
	}
	return release(session)
}

func release(session *container.ExecSession) error {
	if session == nil || session.Close == nil {
		return nil
	}
	return session.Close()
}
