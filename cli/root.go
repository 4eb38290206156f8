package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"berth/base/errs"
)

// The groups of verbs in the help.
const (
	groupLife   = "life"
	groupLook   = "look"
	groupInside = "inside"
	groupImages = "images"
	groupThings = "things"
	groupNode   = "node"
)

// root is berth itself with all its verbs.
func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run containers on this machine",
		Long: `Berth runs containers: it pulls their images, starts them, watches them and
tidies up behind them.`,
		Example: `  berth up                                start Berth on this machine
  berth run -it --rm alpine               a shell in a new container
  berth run -d --name web -p 8080:80 nginx
  berth logs -f web
  berth rm -f web`,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       p.noVerb,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&p.socket, "socket", "", "the node's socket (BERTH_SOCKET, else berth.sock in BERTH_STATE, else /run/berth/berth.sock)")
	root.PersistentFlags().BoolVarP(&p.debug, "debug", "D", false, "say more when something goes wrong")
	root.PersistentFlags().Bool("help", false, "say what the verb does and which options it takes")
	root.PersistentFlags().Lookup("help").Hidden = true
	root.SetFlagErrorFunc(flagFailure)
	root.SetUsageFunc(p.usage)
	root.SetHelpFunc(p.help)
	root.AddGroup(
		&cobra.Group{ID: groupLife, Title: "Start and stop containers"},
		&cobra.Group{ID: groupLook, Title: "Look at containers"},
		&cobra.Group{ID: groupInside, Title: "Work inside containers"},
		&cobra.Group{ID: groupImages, Title: "Images"},
		&cobra.Group{ID: groupThings, Title: "Verbs by what they are about"},
		&cobra.Group{ID: groupNode, Title: "Berth itself"},
	)
	add := func(group string, verbs ...*cobra.Command) {
		for _, verb := range verbs {
			verb.GroupID = group
			root.AddCommand(verb)
		}
	}
	add(groupLife, p.run(), p.create(), p.start(), p.stop(), p.restart(), p.kill(), p.pause(), p.unpause(), p.wait(), p.rename(), p.update(), p.rm())
	add(groupLook, p.ps(), p.logs(), p.inspect(), p.top(), p.stats(), p.port(), p.diff(), p.events())
	add(groupInside, p.exec(), p.attach(), p.cp(), p.export(), p.commit())
	add(groupImages, p.build(), p.pull(), p.push(), p.images(), p.tag(), p.rmi(), p.history(), p.load(), p.save())
	add(groupThings, p.container(), p.pod(), p.image(), p.network(), p.volume(), p.builder(), p.seccomp(), p.system())
	add(groupNode, p.up(), p.daemonNode(), p.daemonKeeper(), p.daemonLazy(), p.registry(), p.snapshotter(), p.info(), p.version(), p.completion())
	root.SetHelpCommand(helpVerb())
	return root
}

// helpVerb is --help in the form of a verb.
func helpVerb() *cobra.Command {
	return &cobra.Command{
		Use:     "help [VERB]...",
		Short:   "Say how a verb is used",
		Example: "  berth help run\n  berth help network create",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) == 0 {
				return about.Help()
			}
			if len(rest) == 0 {
				rest = args
			}
			return unknownVerb(about, rest[0])
		},
	}
}

// noVerb answers to berth alone, and to verbs that do not exist.
func (p *program) noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownVerb(cmd, args[0])
}

func unknownVerb(cmd *cobra.Command, name string) error {
	var names []string
	for _, verb := range cmd.Commands() {
		if verb.IsAvailableCommand() {
			names = append(names, verb.Name())
			names = append(names, verb.Aliases...)
		}
	}
	hint := "see " + cmd.CommandPath() + " --help"
	if above, _, err := cmd.Root().Find([]string{name}); err == nil && above.Name() == name {
		hint = "there is berth " + name
	} else if near := closest(name, names); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return &exitError{code: 2, err: errs.New(errs.Invalid, "no verb %q; %s", name, hint)}
}

// management is a verb that only holds others, such as network.
func (p *program) management(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: p.noVerb}
	cmd.AddCommand(verbs...)
	return cmd
}

// as gives a verb the name that it has under a management verb, where its
// usage line begins with another word.
func as(name string, verb *cobra.Command, aliases ...string) *cobra.Command {
	_, rest, _ := strings.Cut(verb.Use, " ")
	verb.Use = strings.TrimSpace(name + " " + rest)
	verb.Aliases = aliases
	return verb
}
