package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/cli/terminal"
)

// help answers to --help: what the verb does, then how it is used.
func (p *program) help(cmd *cobra.Command, _ []string) {
	if cmd.Long != "" {
		fmt.Fprintln(p.stdout, strings.TrimSpace(cmd.Long)+"\n")
	} else {
		fmt.Fprintln(p.stdout, cmd.Short+"\n")
	}
	p.writeUsage(p.stdout, cmd)
}

func (p *program) usage(cmd *cobra.Command) error {
	p.writeUsage(p.stderr, cmd)
	return nil
}

func (p *program) writeUsage(w io.Writer, cmd *cobra.Command) {
	out := &strings.Builder{}
	heading := func(text string) string {
		if terminal.Colors(w) {
			return "\x1b[1m" + text + "\x1b[0m"
		}
		return text
	}
	fmt.Fprintf(out, "%s  %s\n", heading("Usage:"), useLine(cmd))
	if names := otherNames(cmd); len(names) > 0 {
		fmt.Fprintf(out, "\n%s  %s\n", heading("Also:"), strings.Join(names, ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(out, "\n%s\n%s\n", heading("Examples"), strings.TrimRight(cmd.Example, "\n "))
	}
	writeVerbs(out, cmd, heading)
	writeFlags(out, heading("Options"), cmd.LocalFlags(), cmd)
	writeFlags(out, heading("Options of every verb"), cmd.InheritedFlags(), nil)
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(out, "\n%s VERB --help says more about a verb.\n", cmd.CommandPath())
	}
	_, _ = io.WriteString(w, out.String())
}

// useLine is the usage of a verb, or of the verbs that it holds.
func useLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " VERB"
	}
	return strings.TrimSuffix(cmd.CommandPath(), cmd.Name()) + cmd.Use
}

// otherNames are the aliases of a verb in full.
func otherNames(cmd *cobra.Command) []string {
	var names []string
	for _, alias := range cmd.Aliases {
		names = append(names, cmd.Parent().CommandPath()+" "+alias)
	}
	return names
}

func writeVerbs(out io.Writer, cmd *cobra.Command, heading func(string) string) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	list := func(title, group string) {
		fmt.Fprintf(out, "\n%s\n", heading(title))
		for _, verb := range cmd.Commands() {
			if verb.GroupID == group && verb.IsAvailableCommand() {
				fmt.Fprintf(out, "  %-11s %s\n", verb.Name(), verb.Short)
			}
		}
	}
	if len(cmd.Groups()) == 0 {
		list("Verbs", "")
	}
	for _, group := range cmd.Groups() {
		list(group.Title, group.ID)
	}
}

// writeFlags lists flags. Those of the parents of owner are left out.
func writeFlags(out io.Writer, title string, flags *pflag.FlagSet, owner *cobra.Command) {
	shown := pflag.NewFlagSet("", pflag.ContinueOnError)
	shown.SortFlags = flags.SortFlags
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "help" && (owner == nil || !owner.HasParent() || owner.InheritedFlags().Lookup(flag.Name) == nil) {
			shown.AddFlag(flag)
		}
	})
	if text := shown.FlagUsages(); text != "" {
		// A flag that may be given more than once is a list to its user.
		fmt.Fprintf(out, "\n%s\n%s", title, strings.ReplaceAll(text, " stringArray ", " list        "))
	}
}
