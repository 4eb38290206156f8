package oci

import (
	"bytes"
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
	case strings.Contains(failed.Error(), "CRIU support"):
		return errs.New(errs.Unsupported, "%w", failed)
	}
	if said := lastErrors(log); said != "" {
		return fmt.Errorf("%w: %s", failed, said)
	}
	return failed
}

// lastErrors are the errors of CRIU's log, at most three.
func lastErrors(log string) string {
	data, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	var said []string
	for line := range bytes.Lines(data) {
		if i := bytes.Index(line, []byte("Error (")); i >= 0 {
			said = append(said, strings.TrimSpace(string(line[i:])))
		}
	}
	return strings.Join(said[max(0, len(said)-3):], "; ")
}
