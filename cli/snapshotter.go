package cli

import (
	"cmp"

	"github.com/spf13/cobra"

	"berth/daemon"
)

func (p *program) snapshotter() *cobra.Command {
	var config daemon.SnapshotterConfig
	var address string
	cmd := &cobra.Command{
		Use:   "snapshotter [OPTIONS]",
		Short: "Serve the layer store to containerd, as its snapshotter",
		Long: `Serve the layer store to a containerd of this machine, and to what stands on it:
Docker, Kubernetes, nerdctl, BuildKit. Three lines of containerd's configuration
make it known there:

  [proxy_plugins.berth]
    type = "snapshot"
    address = "/run/berth/snapshotter.sock"

It needs no node, and keeps its layers apart from one. Containers do not notice
when it ends; another one on the same root goes on where it was.`,
		Example: `  berth snapshotter
  berth snapshotter --root /srv/layers --log-format json
  ctr run --rm --snapshotter berth docker.io/library/alpine:latest test`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Socket = cmp.Or(address, p.socket, daemon.DefaultSnapshotterSocket)
			if p.debug && config.LogLevel == "" {
				config.LogLevel = "debug"
			}
			config.Log = p.stderr
			return daemon.RunSnapshotter(cmd.Context(), config)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVar(&address, "address", "", "socket that containerd finds it at, as --socket (default "+daemon.DefaultSnapshotterSocket+")")
	flags.StringVar(&config.Root, "root", daemon.DefaultSnapshotterRoot, "folder of the layers")
	flags.StringVar(&config.Driver, "storage-driver", "", "how layers are kept: lcfs, lcfs-loop, overlay, btrfs, reflink, copy (default auto: the first that works)")
	flags.BoolVar(&config.Sync, "sync", false, "answer a commit only when its layer would survive a loss of power")
	addLog(cmd, &config.LogLevel, &config.LogFormat)
	completeFlag(cmd, "storage-driver", completeWords("auto", "lcfs", "lcfs-loop", "overlay", "btrfs", "reflink", "copy"))
	return cmd
}
