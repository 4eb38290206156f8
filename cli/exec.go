package cli

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"berth/cli/option"
	"berth/cli/terminal"
	"berth/client"
	"berth/spec"
)

type execVerb struct {
	*program
	config        spec.ExecConfig
	env, envFiles []string
	detachKeys    string
}

func (p *program) exec() *cobra.Command {
	e := &execVerb{program: p}
	cmd := &cobra.Command{
		Use:   "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Run a command in a container that runs. Its exit code becomes that of berth;
126 means that the command cannot be run, 127 that there is none.`,
		Example: `  berth exec web ls -l /etc
  berth exec -it web sh
  berth exec -i db psql < dump.sql
  berth exec -d -u www -w /srv -e MODE=fast web ./reindex`,
		Args: arguments(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := option.Env(e.envFiles, e.env, os.LookupEnv)
			if err != nil {
				return err
			}
			e.config.Env, e.config.Command = env, args[1:]
			err = e.start(cmd.Context(), args[0])
			return startFailure(p.meantContainer(cmd.Context(), err, args[0]), codeFailed)
		},
		ValidArgsFunction: completeInTurn(p.containersThat(running)),
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&e.config.Detach, "detach", "d", false, "run in the background; the output is thrown away")
	flags.BoolVarP(&e.config.OpenStdin, "interactive", "i", false, "keep stdin open")
	flags.BoolVarP(&e.config.TTY, "tty", "t", false, "give the command a terminal")
	flags.StringArrayVarP(&e.env, "env", "e", nil, "set a variable: NAME=value, or NAME to take over yours")
	flags.StringArrayVar(&e.envFiles, "env-file", nil, "read variables from a file")
	flags.StringVarP(&e.config.User, "user", "u", "", "name or id, and optionally :group")
	flags.StringVarP(&e.config.WorkDir, "workdir", "w", "", "folder to start in")
	flags.BoolVar(&e.config.Privileged, "privileged", false, "all that the node itself may do")
	flags.StringVar(&e.detachKeys, "detach-keys", "", "keys that detach from a terminal (default ctrl-p,ctrl-q)")
	return cmd
}

func (e *execVerb) start(ctx context.Context, ref string) error {
	s := streams{stdin: e.config.OpenStdin, stdout: true, stderr: true, tty: e.config.TTY, detachKeys: e.detachKeys}
	if !e.config.Detach {
		if err := e.usable(s); err != nil {
			return err
		}
	}
	e.config.Size = terminal.Size(e.stdout)
	made, err := e.node().ExecCreate(ctx, ref, e.config)
	if err != nil {
		return err
	}
	if e.config.Detach {
		return e.node().ExecDetached(ctx, made.ID)
	}
	ctx, stop := hangUp(ctx)
	defer stop()
	opts, restore, err := e.options(ctx, s)
	if err != nil {
		return err
	}
	defer restore()
	exit, err := e.node().ExecStart(ctx, made.ID, opts)
	restore()
	if errors.Is(err, client.ErrDetached) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.ended(exit)
}
