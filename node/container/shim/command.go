package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"berth/base/errs"
	"berth/spec"
)

const (
	// speaksLike is the version of containerd whose customs we keep.
	speaksLike = "2.4.2"
	// longestSockets is how long the name of a folder of sockets may be, whose
	// files have names of 64 bytes.
	longestSockets = 42
	// mostSaid is how much of what a shim prints is read.
	mostSaid = 64 << 10
	// drain is how long we read on after a command's end, where something that
	// it left behind holds its output open.
	drain = 500 * time.Millisecond
)

// invocation is one run of a shim's program, for one container.
type invocation struct {
	binary          string
	namespace, name string
	bundle          string // in which the program runs
	named           string // the same, by a path that ends in the name
	options         *spec.Opaque
}

// start runs the command start, which leaves a shim behind, or joins one.
func (d *Driver) start(ctx context.Context, i invocation) (endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Limits.Start)
	defer cancel()
	cmd := d.command(ctx, i, "start")
	stdin, err := d.introduction(ctx, i)
	if err != nil {
		return endpoint{}, err
	}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := d.said(ctx, cmd)
	if err != nil {
		return endpoint{}, err
	}
	return parseAnswer(out)
}

// cleanUp runs the command delete, which puts away what is left of a container
// whose shim is gone or going.
func (d *Driver) cleanUp(ctx context.Context, i invocation) (*taskapi.DeleteResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Limits.Cleanup)
	defer cancel()
	out, err := d.said(ctx, d.command(ctx, i, "delete"))
	if err != nil {
		return nil, err
	}
	var answer taskapi.DeleteResponse
	if err := proto.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("its answer %s: %w", quote(out), err)
	}
	return &answer, nil
}

// command makes a command of the shim's program, with what old shims read from
// flags and variables.
func (d *Driver) command(ctx context.Context, i invocation, action string) *exec.Cmd {
	args := []string{"-namespace", i.namespace, "-address", d.Address, "-publish-binary", d.Binary, "-id", i.name}
	if action == "delete" {
		args = append(args, "-bundle", i.bundle)
	}
	if d.debugs(ctx) {
		args = append(args, "-debug")
	}
	cmd := exec.CommandContext(ctx, i.binary, append(args, action)...)
	// Some look for the bundle of delete beside the folder where they run, by
	// the container's name; those that are started pass the variable on to a
	// runtime that wants no links in its paths.
	cmd.Dir = i.bundle
	if action == "delete" {
		cmd.Dir = i.named
	}
	cmd.Env = append(os.Environ(),
		"GOMAXPROCS=2", "MAX_SHIM_VERSION=2",
		"TTRPC_ADDRESS="+d.Events, "GRPC_ADDRESS="+d.Address, "NAMESPACE="+i.namespace,
		"PWD="+cmd.Dir)
	cmd.Env = append(cmd.Env, d.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drain
	return cmd
}

func (d *Driver) debugs(ctx context.Context) bool { return d.Log.Enabled(ctx, slog.LevelDebug) }

// introduction is what start reads from its stdin: a message for shims since
// containerd 2.3, which those before take for options of no known type.
func (d *Driver) introduction(ctx context.Context, i invocation) ([]byte, error) {
	var options *anypb.Any
	if i.options != nil {
		options = &anypb.Any{TypeUrl: i.options.Type, Value: i.options.Value}
	}
	if name := filepath.Base(i.binary); strings.Contains(name, "shim-runc-v1") || strings.Contains(name, "shim-runhcs-v1") {
		if options == nil {
			return nil, nil
		}
		return proto.Marshal(options) // these fail when they are told anything else
	}
	params := &bootstrap.BootstrapParams{
		InstanceID: i.name, Namespace: i.namespace, ContainerdVersion: speaksLike,
		ContainerdGrpcAddress: d.Address, ContainerdTtrpcAddress: d.Events, ContainerdBinary: d.Binary,
	}
	if d.debugs(ctx) {
		params.LogLevel = bootstrap.LogLevel_LOG_LEVEL_DEBUG
	}
	if d.Sockets != "" && len(d.Sockets) <= longestSockets {
		params.SocketDir = &d.Sockets
	}
	if options != nil {
		params.Extensions = append(params.Extensions, &bootstrap.Extension{Value: options})
	}
	data, err := proto.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("parameters of the shim: %w", err)
	}
	return data, nil
}

// said runs a command to its end and gives what it printed. Its complaints
// become the error.
func (d *Driver) said(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out, complaints head
	cmd.Stdout, cmd.Stderr = &out, &complaints
	what := filepath.Base(cmd.Path) + " " + cmd.Args[len(cmd.Args)-1]
	err := cmd.Run()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return out.data, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, errs.New(errs.Timeout, "%s: killed, it took too long", what)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", what, ctx.Err())
	case len(bytes.TrimSpace(complaints.data)) > 0:
		return nil, fmt.Errorf("%s: %s", what, quote(complaints.data))
	case len(bytes.TrimSpace(out.data)) > 0: // where some complain
		return nil, fmt.Errorf("%s: %w: %s", what, err, quote(out.data))
	}
	return nil, fmt.Errorf("%s: %w", what, err)
}

// head keeps the beginning of what is written to it.
type head struct{ data []byte }

func (h *head) Write(p []byte) (int, error) {
	h.data = append(h.data, p[:min(len(p), mostSaid-len(h.data))]...)
	return len(p), nil
}
