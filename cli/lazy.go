package cli

import (
	"github.com/spf13/cobra"

	"berth/daemon"
)

func (p *program) daemonLazy() *cobra.Command {
	var config daemon.LazyConfig
	cmd := &cobra.Command{
		Use:    "lazy [OPTIONS]",
		Short:  "Serve files of images that are not here yet; berth node starts it",
		Hidden: true,
		Long: `Serve files of images that are not here yet: an open of one waits until node
has fetched it. berth node starts it when it is first needed; there is no need
to. It ends when the last container has ended that was started before all of its
image was here.`,
		Example: "  berth lazy --root /var/lib/berth --state /run/berth",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			fromEnv(&config.Root, "BERTH_ROOT")
			fromEnv(&config.State, "BERTH_STATE")
			config.Log = p.stderr
			return daemon.RunLazy(cmd.Context(), config)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&config.Root, "root", "", "folder of what lasts: layers, images (BERTH_ROOT, else "+daemon.DefaultRoot+")")
	addState(cmd.Flags(), &config.State)
	addLog(cmd, &config.LogLevel, &config.LogFormat)
	return cmd
}
