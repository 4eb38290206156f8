package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	if !validID(l.ID) || l.Name != "" && !validID(l.Name) {
		return nil, errs.New(errs.Invalid, "container id %q", l.ID)
	}
	chosen, err := r.chosen(l)
	if err != nil {
		return nil, err
	}
	if chosen.restore != "" {
		if command, err = r.restore(command[0], &chosen); err != nil {
			return nil, err
		}
	}
	program, err := r.program(chosen)
	if err != nil {
		return nil, err
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
	if err := errors.Join(chosen.write(r.choice(l.ID)), os.Mkdir(r.launching(l.ID), 0o700)); err != nil {
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	p, err = r.bring(ctx, l, chosen, program, command)
	if err != nil && chosen.restore != "" {
		err = r.whyNoCRIU(ctx, err, filepath.Join(cmp.Or(chosen.work, chosen.restore), "restore.log"))
	}
	if err == nil && chosen.Restored { // until Start, as whatever else is created
		err = r.freeze(ctx, l.ID, true)
	}
	return p, err
}

// adapt makes a bundle one that the program takes and that we can find again.
func (r *Runtime) adapt(l container.Launch, c choice, p *program) (*config, error) {
	config, err := readConfig(l.Bundle)
	if err != nil {
		return nil, err
	}
	if !c.Systemd {
		if err := config.settleCgroup(l.ID); err != nil {
			return nil, err
		}
	}
	if p.refuses && config.later() {
		if err := config.lowerVersion(); err != nil {
			return nil, err
		}
	}
	if err := config.write(); err != nil {
		return nil, err
	}
	_, err = r.learn(l.ID, c, config.data)
	return config, err
}

// bring has the program make the container, by command.
func (r *Runtime) bring(ctx context.Context, l container.Launch, c choice, program *program, command []string) (*container.Process, error) {
	config, err := r.adapt(l, c, program)
	if err != nil {
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	command = append(append(command, "--bundle", l.Bundle), c.flags()...)
	var joins *joining
	var filtered string
	var learn *profile
	if c.restore != "" { // with the profile that it had
		joins, err = config.join(program)
	} else {
		filtered, learn, err = program.filters.apply(config, filepath.Join(r.launching(l.ID), "config.json"))
	}
	if err != nil {
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	if filtered != "" {
		command = append(command, "--config", filtered)
	}
	id, pidFile := cmp.Or(c.ID, l.ID), ""
	if l.Streams != nil { // where programs that stand in for a runtime look for it
		pidFile = filepath.Join(l.Bundle, "init.pid")
	}
	p, err := r.launch(ctx, program, keeper.Launch{
		ID: l.ID, Dir: l.Bundle, PidFile: pidFile, Stdin: l.Stdin, Output: keeper.ToLog,
		Log:     keeper.Log{Path: l.Log.Path, MaxSize: l.Log.MaxSize, MaxFiles: l.Log.MaxFiles},
		Streams: streams(l.Streams, c, l.Name, l.Namespace, l.ID),
		Rows:    l.Size.Rows, Cols: l.Size.Cols,
	}, l.TTY, command, id)
	if err != nil {
		return nil, err
	}
	program.filters.learn(learn, program.records(id))
	if err := joins.settle(); err != nil {
		return nil, fmt.Errorf("runtime %s: restore: %w", r.name, err)
	}
	if err := os.RemoveAll(r.launching(l.ID)); err != nil { // from here on the launch is known to be over
		return nil, fmt.Errorf("runtime %s: %w", r.name, err)
	}
	return p, nil
}

// streams are a client's, with what a logger is told.
func streams(s *container.Streams, c choice, name, namespace, id string) *keeper.Streams {
	if s == nil {
		return nil
	}
	return &keeper.Streams{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr,
		Name: cmp.Or(name, id), Namespace: namespace, UID: c.UID, GID: c.GID,
	}
}

// Exec runs a further process in a running container.
func (r *Runtime) Exec(ctx context.Context, l container.ExecLaunch) (p *container.Process, err error) {
	if !validID(l.ID) || !validID(l.Container) {
		return nil, errs.New(errs.Invalid, "exec id %q in container %q", l.ID, l.Container)
	}
	b, err := r.bundle(l.Container)
	if err != nil {
		return nil, err
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
	return r.launch(ctx, b.program, keeper.Launch{
		ID: l.ID, Dir: r.record(l.Container), Stdin: l.Stdin, Output: output, Rows: l.Size.Rows, Cols: l.Size.Cols,
		Streams: streams(l.Streams, b.choice, l.Name, l.Namespace, l.ID),
	}, l.Process.Terminal, []string{"exec", "--detach", "--process", file}, b.id(l.Container))
}

// launch has the keeper run a command that leaves a process behind.
func (r *Runtime) launch(ctx context.Context, program *program, l keeper.Launch, tty bool, command []string, id string) (*container.Process, error) {
	l.PidFile, l.RuntimeLog = cmp.Or(l.PidFile, filepath.Join(r.launching(l.ID), "pid")), filepath.Join(r.launching(l.ID), "log")
	command = append(command, "--pid-file", l.PidFile)
	if tty {
		// A socket's path is short: 107 bytes at most.
		sum := sha256.Sum256([]byte(l.ID))
		l.ConsoleSocket = r.launching(hex.EncodeToString(sum[:8])) + ".tty"
		defer os.Remove(l.ConsoleSocket)
		command = append(command, "--console-socket", l.ConsoleSocket)
	}
	l.Argv = append([]string{program.path}, program.args...)
	l.Argv = append(l.Argv, "--log", l.RuntimeLog)
	l.Argv = append(append(l.Argv, command...), id)
	l.Env = environment()
	ctx, cancel := program.bound(ctx, command[0])
	defer cancel()
	end := r.haste.begin()
	p, err := r.keeper.Launch(ctx, l)
	end()
	if err != nil {
		if hung := program.hung(ctx, command[0]); hung != nil {
			return nil, hung
		}
		if failed, ok := errors.AsType[*keeper.LaunchError](err); ok {
			return nil, failure(program.name, command[0], failed.Text)
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
	if p.Given {
		out.CloseStdin = func(ctx context.Context) error { return r.keeper.CloseStdin(ctx, p.ID) }
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
		out.CloseOutput = func(ctx context.Context) error { return r.keeper.CloseOutput(ctx, p.ID) }
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

// validID: ids become names of files, which may be 255 bytes long.
func validID(id string) bool {
	return id != "" && len(id) <= 240 && id[0] != '.' && id == filepath.Base(id)
}
