package cli

import (
	"github.com/spf13/cobra"

	"berth/daemon"
)

func (p *program) daemonKeeper() *cobra.Command {
	var config daemon.KeeperConfig
	cmd := &cobra.Command{
		Use:   "keeper [OPTIONS]",
		Short: "Serve as the parent of all containers; berth node starts it",
		Long: `Serve as the parent of all containers: it holds their output and knows their
exit codes while the node is away. berth node starts one by itself; there is no
need to.`,
		Example: "  berth keeper --state /run/berth",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fromEnv(&config.State, "BERTH_STATE")
			if config.State == "" {
				config.State = daemon.DefaultState
			}
			config.Log = p.stderr
			return daemon.RunKeeper(cmd.Context(), config)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	addState(cmd.Flags(), &config.State)
	addLog(cmd, &config.LogLevel, &config.LogFormat)
	return cmd
}
