package cli

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/daemon"
)

// nodeFlags are what node and up take. What is not given is left empty, so
// that the configuration file may say it.
type nodeFlags struct{ config daemon.NodeConfig }

func (f *nodeFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.config.Root, "root", "", "folder of what lasts: images, containers, volumes (BERTH_ROOT, else "+daemon.DefaultRoot+")")
	flags.StringVar(&f.config.ConfigFile, "config", "", "configuration file (BERTH_CONFIG, else "+daemon.DefaultConfig+" if it is there)")
	flags.StringVar(&f.config.Group, "group", "", "group that may use the socket besides root (default berth)")
	flags.StringVar(&f.config.Runtime, "runtime", "", "OCI runtime where a container asks for none (default crun or runc, as there is)")
	flags.StringVar(&f.config.OTLP, "otlp", "", "where traces go, as in http://localhost:4318 (OTEL_EXPORTER_OTLP_ENDPOINT)")
	flags.StringVar(&f.config.Storage.Driver, "storage-driver", "", "how layers are kept: lcfs, lcfs-loop, overlay, btrfs, reflink, copy (default auto: the first that works)")
	completeFlag(cmd, "storage-driver", completeWords("auto", "lcfs", "lcfs-loop", "overlay", "btrfs", "reflink", "copy"))
	addState(flags, &f.config.State)
	addLog(cmd, &f.config.LogLevel, &f.config.LogFormat)
}

func addState(flags *pflag.FlagSet, state *string) {
	flags.StringVar(state, "state", "", "folder of what is valid until reboot: sockets, pids (BERTH_STATE, else "+daemon.DefaultState+")")
}

func addLog(cmd *cobra.Command, level, format *string) {
	cmd.Flags().StringVar(level, "log-level", "", "debug, info, warn or error (default info)")
	cmd.Flags().StringVar(format, "log-format", "", "text or json (default text)")
	completeFlag(cmd, "log-level", completeWords("debug", "info", "warn", "error"))
	completeFlag(cmd, "log-format", completeWords("text", "json"))
}

// read completes the flags from the environment.
func (f *nodeFlags) read(p *program) daemon.NodeConfig {
	c := f.config
	fromEnv(&c.Root, "BERTH_ROOT")
	fromEnv(&c.State, "BERTH_STATE")
	fromEnv(&c.ConfigFile, "BERTH_CONFIG")
	c.Socket = p.socket
	fromEnv(&c.Socket, "BERTH_SOCKET")
	if p.debug && c.LogLevel == "" {
		c.LogLevel = "debug"
	}
	c.Version = ownVersion()
	c.Log = p.stderr
	return c
}

func fromEnv(value *string, name string) {
	if *value == "" {
		*value = os.Getenv(name)
	}
}

func (p *program) daemonNode() *cobra.Command {
	f := &nodeFlags{}
	cmd := &cobra.Command{
		Use:   "node [OPTIONS]",
		Short: "Serve as the node of this machine",
		Long: `Serve as the node of this machine: the daemon that keeps images, containers,
networks and volumes and answers on the socket. It goes on until it is told to
end by TERM or INT; containers do not notice when it does. After TERM clients
wait up to ten seconds for the next node; after INT (ctrl-C) they are told at
once that there is none. It takes the socket that systemd listens on for it.`,
		Example: `  berth node
  berth node --root /srv/berth --log-format json
  berth node --root /tmp/b/root --state /tmp/b/run --socket /tmp/b/berth.sock`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return daemon.RunNode(cmd.Context(), f.read(p))
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd)
	return cmd
}
