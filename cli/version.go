package cli

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"berth/spec"
)

// asking is how long version waits for the node.
const asking = 2 * time.Second

// versions is what berth version knows.
type versions struct {
	Client spec.Version
	Server *spec.Version `json:",omitempty"`
}

func (p *program) version() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version [OPTIONS]",
		Short: "Show the version of berth, and of the node where one answers",
		Example: `  berth version
  berth version -f '{{.Client.Version}}'`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: ownVersion()}
			ctx, cancel := context.WithTimeout(cmd.Context(), asking)
			defer cancel()
			if node, err := p.node().Version(ctx); err == nil {
				v.Server = &node
			}
			switch format {
			case "":
				p.printVersions(v)
				return nil
			case "json":
				return writeLine(p.stdout, v)
			}
			return executeAny(p.stdout, format, v)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "how to show it: json or a Go TEMPLATE")
	completeFlag(cmd, "format", completeWords("json"))
	return cmd
}

func (p *program) printVersions(v versions) {
	fmt.Fprintln(p.stdout, "berth", versionLine(v.Client))
	if v.Server != nil {
		fmt.Fprintln(p.stdout, "node ", versionLine(*v.Server))
	}
}

func versionLine(v spec.Version) string {
	line := v.Version
	if v.Commit != "" {
		line += " (" + v.Commit[:min(12, len(v.Commit))] + ")"
	}
	return fmt.Sprintf("%s, %s, %s", line, v.GoVersion, v.Platform)
}

// ownVersion is what the linker was told, or what go build noted.
func ownVersion() spec.Version {
	v := spec.Version{Version: version, Commit: commit, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, API: "v1"}
	if built, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range built.Settings {
			switch setting.Key {
			case "vcs.revision":
				v.Commit = cmp.Or(v.Commit, setting.Value)
			case "vcs.time":
				v.Built = setting.Value
			}
		}
	}
	v.Version = cmp.Or(v.Version, "devel")
	return v
}
