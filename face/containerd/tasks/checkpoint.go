package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/images"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/face/containerd/wire"
	"berth/node/container"
	"berth/node/folder"
	"berth/spec"
)

// maxCheckpoint bounds what a checkpoint unpacks to.
const maxCheckpoint = 64 << 30

// fromPath is the annotation of a checkpoint that lies in a folder already.
const fromPath = "RestoreFromPath"

// Checkpoint writes a task to disk: to the folder that the options name, or as
// two blobs, the image of its processes and the container's spec.
func (s *Tasks) Checkpoint(ctx context.Context, r *api.CheckpointTaskRequest) (*api.CheckpointTaskResponse, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return nil, wire.Error(err)
	}
	asked := &options.CheckpointOptions{}
	if r.GetOptions() != nil {
		if err := unpack(r.GetOptions(), asked); err != nil {
			return nil, wire.Error(err)
		}
	}
	wanted := container.Checkpoint{
		Image: asked.GetImagePath(), Work: asked.GetWorkPath(), Parent: asked.GetParentPath(), Exit: asked.GetExit(),
		OpenTCP: asked.GetOpenTcp(), ExternalUnixSockets: asked.GetExternalUnixSockets(), Terminal: asked.GetTerminal(),
		FileLocks: asked.GetFileLocks(), EmptyNamespaces: asked.GetEmptyNamespaces(),
	}
	if wanted.Image != "" {
		err := s.Controls.CheckpointTask(ctx, namespace, r.GetContainerID(), wanted)
		return &api.CheckpointTaskResponse{}, wire.Error(err)
	}
	answer, err := s.checkpoint(ctx, namespace, r.GetContainerID(), wanted)
	return answer, wire.Error(err)
}

// checkpoint writes a task to a folder that is then thrown away, and what is in
// it to blobs.
func (s *Tasks) checkpoint(ctx context.Context, namespace, id string, wanted container.Checkpoint) (*api.CheckpointTaskResponse, error) {
	g, err := s.Givens.Given(ctx, namespace, id)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.Making, 0o700); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	wanted.Image, err = os.MkdirTemp(s.Making, "checkpoint-")
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	defer os.RemoveAll(wanted.Image)
	if err := s.Controls.CheckpointTask(ctx, namespace, id, wanted); err != nil {
		return nil, err
	}
	name := "checkpoint-" + id + filepath.Base(wanted.Image)
	image, err := s.add(ctx, namespace, name, images.MediaTypeContainerd1Checkpoint, func(w io.Writer) error {
		dir, err := os.Open(wanted.Image)
		if err != nil {
			return err
		}
		defer dir.Close()
		return folder.WriteTar(ctx, w, int(dir.Fd()), false)
	})
	if err != nil {
		return nil, err
	}
	config, err := s.add(ctx, namespace, name+"-spec", images.MediaTypeContainerd1CheckpointConfig, func(w io.Writer) error {
		data, err := proto.Marshal(wire.Any(g.Spec))
		if err != nil {
			return errs.New(errs.Internal, "encode spec: %w", err)
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &api.CheckpointTaskResponse{Descriptors: []*types.Descriptor{image, config}}, nil
}

// add makes a blob of what write writes.
func (s *Tasks) add(ctx context.Context, namespace, name, media string, write func(io.Writer) error) (*types.Descriptor, error) {
	made := &types.Descriptor{MediaType: media, Annotations: map[string]string{}}
	read, w := io.Pipe()
	var both errgroup.Group
	both.Go(func() error {
		err := write(w)
		return errors.Join(err, w.CloseWithError(err))
	})
	both.Go(func() (err error) {
		made.Digest, made.Size, err = s.Contents.Add(ctx, namespace, wire.Lease(ctx), name, read)
		return errors.Join(err, read.CloseWithError(err))
	})
	return made, both.Wait()
}

// restore finds the checkpoint that a new task is to go on from, if any, and
// brings it into a folder.
func (s *Tasks) restore(ctx context.Context, namespace string, r *api.CreateTaskRequest, req *container.TaskRequest) error {
	if req.Options != nil && req.Options.Type == string((&options.Options{}).ProtoReflect().Descriptor().FullName()) {
		asked := &options.Options{}
		if err := unpack(wire.Any(req.Options), asked); err != nil {
			return err
		}
		req.Restore = asked.GetCriuImagePath()
	}
	from := r.GetCheckpoint()
	if path := from.GetAnnotations()[fromPath]; path != "" {
		req.Restore = path
	}
	if req.Restore != "" || from == nil {
		return nil
	}
	if from.GetMediaType() != images.MediaTypeContainerd1Checkpoint {
		return errs.New(errs.Invalid, "unsupported checkpoint type %q", from.GetMediaType())
	}
	if err := wire.Identifier(r.GetContainerID()); err != nil {
		return err
	}
	blob, err := s.Contents.Open(ctx, namespace, from.GetDigest())
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer blob.Close()
	req.Restore = s.restored(namespace, r.GetContainerID())
	if err := s.extract(ctx, blob, req.Restore); err != nil {
		s.forget(ctx, namespace, r.GetContainerID())
		return fmt.Errorf("checkpoint %s: %w", from.GetDigest(), err)
	}
	return nil
}

// restored is the folder of the checkpoint that a task went on from.
func (s *Tasks) restored(namespace, id string) string {
	if namespace != spec.DefaultNamespace {
		id = namespace + "+" + id
	}
	return filepath.Join(s.Restored, id)
}

func (s *Tasks) extract(ctx context.Context, blob io.Reader, path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	umask, err := folder.Umask()
	if err != nil {
		return err
	}
	_, err = folder.Unpack(ctx, int(dir.Fd()), blob, folder.Unpacking{Umask: umask, Limit: maxCheckpoint})
	return err
}

// forget removes what was made for a task that is no more: the checkpoint that
// it went on from, and mounts.
func (s *Tasks) forget(ctx context.Context, namespace, id string) {
	if err := wire.Identifier(id); err != nil {
		return
	}
	if err := os.RemoveAll(s.restored(namespace, id)); err != nil {
		s.Log.WarnContext(ctx, "a checkpoint stays on disk", "path", s.restored(namespace, id), "err", err)
	}
	if err := s.Mounts.Release(ctx, namespace, id); err != nil {
		s.Log.WarnContext(ctx, "mounts of a root file system stay", "container", id, "err", err)
	}
}
