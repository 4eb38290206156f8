package cli

import (
	_ "embed"
	"io"

	"github.com/spf13/cobra"

	"berth/base/errs"
)

// bareBash replaces what cobra's script takes from another package.
//
//go:embed completion.bash
var bareBash string

func (p *program) completion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Write a script that completes berth in a shell",
		Long: `Write a script that completes verbs, options, and the names of containers,
images, networks, volumes and pods in a shell.`,
		Example: `  source <(berth completion bash)
  berth completion bash > /etc/bash_completion.d/berth
  berth completion zsh > "${fpath[1]}/_berth"
  berth completion fish > ~/.config/fish/completions/berth.fish`,
		Args:      arguments(1, 1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			write := map[string]func(io.Writer) error{
				"bash": func(w io.Writer) error {
					if err := cmd.Root().GenBashCompletionV2(w, true); err != nil {
						return err
					}
					_, err := io.WriteString(w, bareBash)
					return err
				},
				"zsh":  cmd.Root().GenZshCompletion,
				"fish": func(w io.Writer) error { return cmd.Root().GenFishCompletion(w, true) },
			}[args[0]]
			if write == nil {
				return errs.New(errs.Invalid, "shell %q: expected bash, zsh or fish", args[0])
			}
			return write(p.stdout)
		},
	}
}
