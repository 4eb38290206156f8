package cli

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth/daemon"
)

func (p *program) registry() *cobra.Command {
	var config daemon.RegistryConfig
	cmd := &cobra.Command{
		Use:   "registry [OPTIONS]",
		Short: "Serve a registry for images, from a folder of this machine",
		Long: `Serve a registry that berth, docker and others can push to and pull from. It
asks for no login: keep it on an address that only friends can reach.`,
		Example: `  berth registry
  berth registry --addr 0.0.0.0:5000 --dir /srv/registry
  berth push localhost:5000/app:1`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.Dir == "" {
				root := daemon.DefaultRoot
				if env := os.Getenv("BERTH_ROOT"); env != "" {
					root = env
				}
				config.Dir = filepath.Join(root, "registry")
			}
			config.Log = p.stderr
			return daemon.RunRegistry(cmd.Context(), config)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&config.Addr, "addr", "127.0.0.1:5000", "address and port to listen on")
	cmd.Flags().StringVar(&config.Dir, "dir", "", "folder of the images (registry in BERTH_ROOT, else "+daemon.DefaultRoot+"/registry)")
	addLog(cmd, &config.LogLevel, &config.LogFormat)
	return cmd
}
