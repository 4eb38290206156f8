package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/client"
	"berth/spec"
)

// removing is how long run --rm waits for the container to be gone.
const removing = 15 * time.Second

// runVerb is one berth run.
type runVerb struct {
	*program
	containerFlags
	detach   bool
	sigProxy bool
	attach   []string
}

func (p *program) run() *cobra.Command {
	r := &runVerb{program: p}
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Make a container and run it",
		Long: `Make a container from an image, which is pulled if it is not here, and run it.
Without -d the output of the container is shown until it ends, and its exit
code becomes that of berth: 125 when Berth failed, 126 when the command cannot
be run, 127 when there is none.`,
		Example: `  berth run --rm alpine echo hello
  berth run -it --rm alpine                     a shell; ctrl-p ctrl-q leaves it running
  berth run -d --name web -p 8080:80 nginx      in the background
  berth run -v data:/data -v ./site:/site:ro -m 256m --cpus 1.5 app
  echo hello | berth run -i --rm alpine cat`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := r.config(cmd.Flags(), args)
			if err == nil {
				err = r.check()
			}
			if err != nil {
				return &exitError{code: codeDaemon, err: err}
			}
			return startFailure(r.container(cmd.Context(), config), codeDaemon)
		},
		ValidArgsFunction: completeInTurn(p.imageNames),
	}
	flags := cmd.Flags()
	r.add(flags)
	flags.BoolVarP(&r.detach, "detach", "d", false, "run in the background and print the container's id")
	flags.BoolVar(&r.sigProxy, "sig-proxy", true, "hand signals on to the container, unless it has a terminal")
	flags.StringArrayVarP(&r.attach, "attach", "a", nil, "connect only stdin, stdout or stderr")
	p.completeContainerFlags(cmd)
	return cmd
}

// completeContainerFlags completes the values of what run and create take.
func (p *program) completeContainerFlags(cmd *cobra.Command) {
	completeFlag(cmd, "network", completeAll(-1, p.networkNames))
	completeFlag(cmd, "volume", func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if strings.ContainsAny(word, "/.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names, _ := completeAll(-1, p.volumeNames)(cmd, nil, word)
		return names, cobra.ShellCompDirectiveNoSpace
	})
	completeFlag(cmd, "restart", completeWords("no", "on-failure", "always", "unless-stopped"))
	completeFlag(cmd, "pull", completeWords("always", "missing", "never"))
	completeFlag(cmd, "runtime", completeWords("runc", "crun"))
	completeFlag(cmd, "security-opt", completeWords("no-new-privileges", "seccomp=unconfined", "unmask=all"))
}

func (r *runVerb) check() error {
	if r.detach && len(r.attach) > 0 {
		return errs.New(errs.Invalid, "-d and -a contradict each other")
	}
	for i, name := range r.attach {
		r.attach[i] = strings.ToLower(name)
		if !slices.Contains([]string{"stdin", "stdout", "stderr"}, r.attach[i]) {
			return errs.New(errs.Invalid, "-a %q: expected stdin, stdout or stderr", name)
		}
	}
	_, err := client.ParseDetachKeys(r.detachKeys)
	return err
}

func (r *runVerb) streams() streams {
	s := streams{stdin: r.interactive, stdout: true, stderr: true, tty: r.tty, detachKeys: r.detachKeys}
	if len(r.attach) > 0 {
		s.stdin = slices.Contains(r.attach, "stdin")
		s.stdout = slices.Contains(r.attach, "stdout")
		s.stderr = slices.Contains(r.attach, "stderr")
	}
	return s
}

func (r *runVerb) container(ctx context.Context, config spec.ContainerConfig) error {
	s := r.streams()
	if !r.detach {
		if s.stdin {
			config.OpenStdin, config.StdinOnce = true, true
		}
		// Fail before there is a container that nobody asked for.
		if err := r.usable(s); err != nil {
			return err
		}
	}
	made, err := r.make(ctx, config, &r.containerFlags)
	if err != nil {
		return err
	}
	if r.detach {
		if err := r.node().ContainerStart(ctx, made.ID); err != nil {
			return err
		}
		fmt.Fprintln(r.stdout, made.ID)
		return nil
	}
	if !s.stdout && !s.stderr { // or nobody would know what to look for
		fmt.Fprintln(r.stdout, made.ID)
	}
	return r.follow(ctx, made, s)
}

// follow starts the container and stays with it until it ends.
func (r *runVerb) follow(ctx context.Context, made spec.Container, s streams) error {
	before := ctx
	var stop func()
	if r.sigProxy && !r.tty {
		ctx, stop = r.proxySignals(ctx, made.ID)
	} else {
		ctx, stop = hangUp(ctx)
	}
	defer stop()
	opts, restore, err := r.options(ctx, s)
	if err != nil {
		return err
	}
	defer restore()
	started := false
	opts.Ready = func(ctx context.Context) error {
		if err := context.Cause(before); err != nil { // interrupted before it could reach the container
			return err
		}
		err := r.node().ContainerStart(ctx, made.ID)
		started = err == nil
		return err
	}
	exit, err := r.node().Attach(ctx, made.ID, opts)
	restore()
	switch {
	case errors.Is(err, client.ErrDetached):
		r.detached(made.Name)
		return nil
	case err != nil && !started && made.Config.AutoRemove:
		r.abandon(ctx, made.ID)
		return err
	case err != nil:
		return err
	}
	if made.Config.AutoRemove {
		r.waitRemoved(ctx, made.ID)
	}
	return r.ended(exit)
}

// abandon removes a container with --rm that never started.
func (r *runVerb) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removing)
	defer cancel()
	if err := r.node().ContainerRemove(ctx, id, true, true); err != nil && !errors.Is(err, errs.NotFound) {
		fmt.Fprintf(r.stderr, "berth: run: remove the container that did not start: %v\n", err)
	}
}

// waitRemoved waits until the name is free for the next run. A node that
// takes long removes the container all the same.
func (r *runVerb) waitRemoved(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, removing)
	defer cancel()
	_, _ = r.node().ContainerWait(ctx, id, client.Removed)
}

// make creates a container, pulling its image if it has to be.
func (p *program) make(ctx context.Context, config spec.ContainerConfig, f *containerFlags) (spec.Container, error) {
	idFile, err := newIDFile(f.cidFile)
	if err != nil {
		return spec.Container{}, err
	}
	made, err := p.makeOrPull(ctx, config, f)
	if err != nil {
		idFile.drop()
		return spec.Container{}, err
	}
	return made, idFile.write(made.ID)
}

func (p *program) makeOrPull(ctx context.Context, config spec.ContainerConfig, f *containerFlags) (spec.Container, error) {
	if f.pull == "always" {
		if err := p.fetch(ctx, config.Image, f); err != nil {
			return spec.Container{}, err
		}
	}
	made, err := p.node().ContainerCreate(ctx, config)
	if err == nil || !errors.Is(err, errs.NotFound) {
		return made, err
	}
	if _, missing := p.node().ImageGet(ctx, config.Image); !errors.Is(missing, errs.NotFound) {
		return made, err // something else is not there
	}
	if f.pull == "never" {
		return made, p.meantImage(ctx, err, config.Image)
	}
	if !f.quiet {
		fmt.Fprintf(p.stderr, "%s is not here yet: pulling it\n", config.Image)
	}
	if err := p.fetch(ctx, config.Image, f); err != nil {
		return made, err
	}
	return p.node().ContainerCreate(ctx, config)
}

// fetch pulls the image of a new container; how it goes is told on stderr,
// since stdout is the container's.
func (p *program) fetch(ctx context.Context, image string, f *containerFlags) error {
	request := spec.PullRequest{Reference: image, Platform: f.platform, Insecure: f.insecure}
	_, err := p.pullImage(ctx, request, p.stderr, f.quiet)
	return err
}

// idFile is the file of --cidfile; nil where there is none.
type idFile struct{ file *os.File }

func newIDFile(name string) (*idFile, error) {
	if name == "" {
		return nil, nil
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, errs.New(errs.Invalid, "--cidfile: %w", err)
	}
	return &idFile{file}, nil
}

func (f *idFile) write(id string) error {
	if f == nil {
		return nil
	}
	_, err := f.file.WriteString(id)
	return errors.Join(err, f.file.Close())
}

func (f *idFile) drop() {
	if f != nil {
		_ = f.file.Close()
		_ = os.Remove(f.file.Name())
	}
}
