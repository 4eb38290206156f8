package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/undo"
	"berth/node/container"
	"berth/node/keeper"
)

// Run makes a container and starts its process.
func (r *Runtime) Run(ctx context.Context, l container.Launch) (*container.Process, error) {
	return r.make(ctx, l, "run", "--detach")
}

// Create makes a container whose process waits for Start.
func (r *Runtime) Create(ctx context.Context, l container.Launch) (*container.Process, error) {
	return r.make(ctx, l, "create")
}

func (r *Runtime) make(ctx context.Context, l container.Launch, command ...string) (p *container.Process, err error) {
	if !validID(l.ID) {
		return nil, errs.New(errs.Invalid, "container id %q", l.ID)
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			back.Run(ctx, &err)
		}
	}()
	switch err := os.Symlink(l.Bundle, r.record(l.ID)); {
	case errors.Is(err, os.ErrExist):
		return nil, errs.New(errs.Exists, "runtime %s: container %s is there already", r.name, l.ID)
	case err != nil:
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	back.Add("delete container", func(ctx context.Context) error { return r.Delete(ctx, l.ID) })
	command = append(command, "--bundle", l.Bundle)
	if err := os.Mkdir(r.launching(l.ID), 0o700); err != nil {
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	config, learn, err := r.filters.apply(l.Bundle, filepath.Join(r.launching(l.ID), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	if config != "" {
		command = append(command, "--config", config)
	}
	p, err = r.launch(ctx, keeper.Launch{
		ID: l.ID, Dir: l.Bundle, Stdin: l.Stdin, Output: keeper.ToLog,
		Log:  keeper.Log{Path: l.Log.Path, MaxSize: l.Log.MaxSize, MaxFiles: l.Log.MaxFiles},
		Rows: l.Size.Rows, Cols: l.Size.Cols,
	}, l.TTY, command, l.ID)
	if err != nil {
		return nil, err
	}
	r.filters.learn(learn, filepath.Join(r.root(), l.ID))
	if err := os.RemoveAll(r.launching(l.ID)); err != nil { // from here on the launch is known to be over
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	return p, nil
}

// Exec runs a further process in a running container.
func (r *Runtime) Exec(ctx context.Context, l container.ExecLaunch) (p *container.Process, err error) {
	if !validID(l.ID) || !validID(l.Container) {
		return nil, errs.New(errs.Invalid, "exec id %q in container %q", l.ID, l.Container)
	}
	data, err := json.Marshal(l.Process)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	dir := r.launching(l.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	defer func() { err = errors.Join(err, r.endLaunch(context.WithoutCancel(ctx), l.ID, err != nil)) }()
	file := filepath.Join(dir, "process.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	output := keeper.Hold
	if l.Detach {
		output = keeper.Discard
	}
	return r.launch(ctx, keeper.Launch{
		ID: l.ID, Dir: r.root(), Stdin: l.Stdin, Output: output, Rows: l.Size.Rows, Cols: l.Size.Cols,
	}, l.Process.Terminal, []string{"exec", "--detach", "--process", file}, l.Container)
}

// launch has the keeper run a command that leaves a process behind.
func (r *Runtime) launch(ctx context.Context, l keeper.Launch, tty bool, command []string, id string) (*container.Process, error) {
	l.PidFile, l.RuntimeLog = filepath.Join(r.launching(l.ID), "pid"), filepath.Join(r.launching(l.ID), "log")
	command = append(command, "--pid-file", l.PidFile)
	if tty {
		// A socket's path is short: 107 bytes at most.
		l.ConsoleSocket = r.launching(l.ID[:min(16, len(l.ID))]) + ".tty"
		defer os.Remove(l.ConsoleSocket)
		command = append(command, "--console-socket", l.ConsoleSocket)
	}
	l.Argv = append([]string{r.path}, r.args...)
	l.Argv = append(l.Argv, "--log", l.RuntimeLog)
	l.Argv = append(append(l.Argv, command...), id)
	l.Env = environment()
	p, err := r.keeper.Launch(ctx, l)
	if err != nil {
		if failed, ok := errors.AsType[*keeper.LaunchError](err); ok {
			return nil, failure(r.name, command[0], failed.Text)
		}
		return nil, fmt.Errorf("runtime %s: %s: %w", r.name, command[0], err)
	}
	return r.process(p)
}

// process gives the caller files of its own: the keeper's go when it forgets
// the process.
func (r *Runtime) process(p *keeper.Process) (*container.Process, error) {
	out := &container.Process{ID: p.ID, Pid: p.Pid}
	var opened []*os.File
	var failed error
	own := func(f *os.File) *os.File {
		dup, err := duplicate(f)
		if err != nil {
			failed = errors.Join(failed, err)
			return nil
		}
		opened = append(opened, dup)
		return dup
	}
	if p.Stdin != nil {
		stdin := own(p.Stdin)
		out.Stdin = stdin
		out.CloseStdin = func(ctx context.Context) error {
			return errors.Join(ignoreClosed(stdin.Close()), r.keeper.CloseStdin(ctx, p.ID))
		}
	}
	if p.Stdout != nil {
		out.Stdout = own(p.Stdout)
	}
	if p.Stderr != nil {
		out.Stderr = own(p.Stderr)
	}
	if p.Console != nil {
		out.Console = own(p.Console)
	}
	if failed == nil {
		return out, nil
	}
	for _, f := range opened {
		failed = errors.Join(failed, f.Close())
	}
	return nil, fmt.Errorf("streams of %s: %w", p.ID, errors.Join(failed, r.keeper.Signal(p.ID, unix.SIGKILL)))
}

func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// environment is what programs, and the hooks they run, get.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// validID: ids become names of files.
func validID(id string) bool {
	return id != "" && len(id) <= 128 && id[0] != '.' && id == filepath.Base(id)
}
