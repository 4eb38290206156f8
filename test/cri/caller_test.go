package cri

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

// caller speaks to a node as kubelet does.
type caller struct {
	*testing.T
	node *node
	api.RuntimeServiceClient
	images api.ImageServiceClient
	conn   *grpc.ClientConn
}

func (n *node) caller(t *testing.T) *caller {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	machine.Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &caller{t, n, api.NewRuntimeServiceClient(conn), api.NewImageServiceClient(conn), conn}
}

func (c *caller) pull(name string) string {
	c.Helper()
	answer, err := c.images.PullImage(c.Context(), &api.PullImageRequest{Image: &api.ImageSpec{Image: name}})
	machine.Must(c, err)
	return answer.GetImageRef()
}

func (c *caller) podConfig(name string) *api.PodSandboxConfig {
	return &api.PodSandboxConfig{
		Metadata: &api.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: "uid-" + name}, LogDirectory: c.node.Dir + "/logs",
		Labels: map[string]string{"app": name}, Linux: &api.LinuxPodSandboxConfig{},
	}
}

func (c *caller) pod(name string) string {
	c.Helper()
	answer, err := c.RunPodSandbox(c.Context(), &api.RunPodSandboxRequest{Config: c.podConfig(name)})
	machine.Must(c, err)
	c.Cleanup(func() {
		_, _ = c.RemovePodSandbox(context.Background(), &api.RemovePodSandboxRequest{PodSandboxId: answer.GetPodSandboxId()})
	})
	return answer.GetPodSandboxId()
}

// config is that of a container which runs until it is stopped.
func (c *caller) config(name, image string) *api.ContainerConfig {
	return &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: name}, Image: &api.ImageSpec{Image: image, UserSpecifiedImage: images.Busybox},
		Command: []string{"sh", "-c", forever}, LogPath: name + ".log", Labels: map[string]string{"name": name}, Linux: &api.LinuxContainerConfig{},
	}
}

func (c *caller) create(pod string, config *api.ContainerConfig) (string, error) {
	answer, err := c.CreateContainer(c.Context(), &api.CreateContainerRequest{PodSandboxId: pod, Config: config})
	return answer.GetContainerId(), err
}

// up makes a container that runs.
func (c *caller) up(pod string, config *api.ContainerConfig) string {
	c.Helper()
	id, err := c.create(pod, config)
	machine.Must(c, err)
	_, err = c.StartContainer(c.Context(), &api.StartContainerRequest{ContainerId: id})
	machine.Must(c, err)
	return id
}

// sh runs a line in a container and returns what it says, and its exit code.
func (c *caller) sh(id, line string) (out string, code int32) {
	c.Helper()
	answer, err := c.ExecSync(c.Context(), &api.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", line}, Timeout: 20})
	machine.Must(c, err)
	return string(answer.GetStdout()) + string(answer.GetStderr()), answer.GetExitCode()
}

func (c *caller) containerStatus(id string) *api.ContainerStatus {
	c.Helper()
	answer, err := c.ContainerStatus(c.Context(), &api.ContainerStatusRequest{ContainerId: id})
	machine.Must(c, err)
	return answer.GetStatus()
}
