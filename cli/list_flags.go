package cli

import (
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/cli/option"
	"berth/cli/table"
	"berth/spec"
)

// listFlags are what every verb takes that lists something.
type listFlags struct {
	format  string
	quiet   bool
	noTrunc bool
	filters []string
}

func (f *listFlags) add(cmd *cobra.Command, keys ...string) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show only ids or names")
	flags.StringArrayVarP(&f.filters, "filter", "f", nil, "show only what fits: key=value")
	f.addFormat(flags)
	var words []string
	for _, key := range keys {
		words = append(words, key+"=")
	}
	completeFlag(cmd, "filter", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	completeFlag(cmd, "format", completeWords("json", "table"))
}

func (f *listFlags) addFormat(flags *pflag.FlagSet) {
	flags.StringVar(&f.format, "format", "", "how to show it: table, table TEMPLATE, json or a Go TEMPLATE")
	flags.BoolVar(&f.noTrunc, "no-trunc", false, "do not shorten anything")
}

func (f *listFlags) filter() (spec.Filter, error) { return option.Filter(f.filters) }

// write shows rows as the flags say; a format of the user's wins over -q.
func write[R any](w io.Writer, f *listFlags, view table.View[R], rows []R) error {
	if f.quiet && f.format == "" {
		return view.WriteQuiet(w, rows)
	}
	return view.Write(w, f.format, rows)
}
