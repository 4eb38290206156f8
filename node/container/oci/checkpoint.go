package oci

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"berth/base/errs"
	"berth/node/container"
)

// Checkpoint has the program write the container to disk, by CRIU.
func (r *Runtime) Checkpoint(ctx context.Context, id string, c container.Checkpoint) error {
	b, err := r.bundle(id)
	if err != nil {
		return err
	}
	work := c.Work
	if work == "" {
		if work, err = os.MkdirTemp(r.state, ".criu-"); err != nil {
			return fmt.Errorf("checkpoint %s: %w", id, err)
		}
		defer os.RemoveAll(work)
	}
	for _, dir := range []string{c.Image, work} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("checkpoint %s: %w", id, err)
		}
	}
	args := []string{"checkpoint", "--image-path", c.Image, "--work-path", work}
	for flag, wanted := range map[string]bool{
		"--leave-running": !c.Exit, "--tcp-established": c.OpenTCP, "--ext-unix-sk": c.ExternalUnixSockets,
		"--shell-job": c.Terminal, "--file-locks": c.FileLocks,
	} {
		if wanted {
			args = append(args, flag)
		}
	}
	if c.Parent != "" {
		args = append(args, "--parent-path", c.Parent)
	}
	for _, kind := range c.EmptyNamespaces {
		args = append(args, "--empty-ns", kind)
	}
	if err := b.program.run(ctx, nil, append(args, b.id(id))...); err != nil {
		return r.whyNoCRIU(ctx, err, filepath.Join(work, "dump.log"))
	}
	return nil
}

// restore is the command that goes on from a checkpoint, in place of create or
// run.
func (r *Runtime) restore(command string, c *choice) ([]string, error) {
	if info, err := os.Stat(c.restore); err != nil || !info.IsDir() {
		return nil, errs.New(errs.NotFound, "checkpoint %s: there is none", c.restore)
	}
	c.Restored = command == "create"
	args := []string{"restore", "--detach", "--image-path", c.restore}
	if c.work != "" {
		args = append(args, "--work-path", c.work)
	}
	return args, nil
}

// whyNoCRIU says what a failed checkpoint or restore is due to: this machine,
// or the container. CRIU's own log says more than the program does.
func (r *Runtime) whyNoCRIU(ctx context.Context, failed error, log string) error {
	cmd := exec.CommandContext(ctx, "criu", "check")
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && len(out) == 0:
		return errs.New(errs.Unsupported, "needs criu: %w", err)
	case err != nil:
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return errs.New(errs.Unsupported, "criu does not work on this machine: %s", first)
	case strings.Contains(failed.Error(), "CRIU support"), strings.Contains(failed.Error(), "unknown command"): // it was built without
		return errs.New(errs.Unsupported, "%w", failed)
	}
	lacks, said := criuFailure(log)
	switch {
	case lacks != "":
		return errs.New(errs.Unsupported, "criu needs the program %s, which is not installed", lacks)
	case said != "":
		return fmt.Errorf("%w: %s", failed, said)
	}
	return failed
}
