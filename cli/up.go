package cli

import (
	"github.com/spf13/cobra"

	"berth/daemon"
)

func (p *program) up() *cobra.Command {
	f := &nodeFlags{}
	cmd := &cobra.Command{
		Use:   "up [OPTIONS]",
		Short: "Start Berth on this machine, ready to use",
		Long: `Start Berth on this machine with what it needs built in, say what was done and
what to try next, and go on until told to end by TERM or ctrl-C. Nothing is
written outside its root and state folders.`,
		Example: `  berth up
  berth up --root ~/berth --state /tmp/berth`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return daemon.RunUp(cmd.Context(), daemon.UpConfig{Node: f.read(p), Out: p.stdout})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd)
	return cmd
}
