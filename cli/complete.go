package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"berth/spec"
)

// completing is how long the node may take; a shell waits for us.
const completing = 2 * time.Second

type completer = cobra.CompletionFunc

func (p *program) containerNames(ctx context.Context) ([]string, error) {
	return p.containersThat(nil)(ctx)
}

// containersThat lists the names of containers that fit; all if fit is nil.
func (p *program) containersThat(fit func(spec.State) bool) lookup {
	return func(ctx context.Context) ([]string, error) {
		containers, err := p.node().ContainerList(ctx, true, nil)
		var names []string
		for _, c := range containers {
			if fit == nil || fit(c.State.Status) {
				names = append(names, c.Name)
			}
		}
		return names, err
	}
}

func (p *program) imageNames(ctx context.Context) ([]string, error) {
	images, err := p.node().ImageList(ctx, nil)
	var names []string
	for _, image := range images {
		for _, name := range image.Names {
			repository, tag, _ := splitName(name)
			if tag == "latest" {
				names = append(names, repository)
			}
			if tag != "" {
				names = append(names, repository+":"+tag)
			}
		}
	}
	return names, err
}

func (p *program) networkNames(ctx context.Context) ([]string, error) {
	networks, err := p.node().NetworkList(ctx, nil)
	var names []string
	for _, network := range networks {
		names = append(names, network.Config.Name)
	}
	return names, err
}

func (p *program) volumeNames(ctx context.Context) ([]string, error) {
	volumes, err := p.node().VolumeList(ctx, nil)
	var names []string
	for _, volume := range volumes {
		names = append(names, volume.Name)
	}
	return names, err
}

func running(s spec.State) bool { return s == spec.Running || s == spec.Paused }

func notRunning(s spec.State) bool { return !running(s) }

// completeAll completes each of at most most arguments (-1: any number) from
// what all lists; without a node there is nothing, and nothing is said.
func completeAll(most int, all lookup) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completing)
		defer cancel()
		names, err := all(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeInTurn completes the first argument from the first list, and so on;
// what comes behind the last is files.
func completeInTurn(lists ...lookup) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(lists) {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return completeAll(len(args)+1, lists[len(args)])(cmd, args, word)
	}
}

// completeFlag completes the value of a flag of cmd.
func completeFlag(cmd *cobra.Command, flag string, complete completer) {
	// The only error is a flag that does not exist, which no build of ours
	// survives: a test runs every command's set-up.
	if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}

func completeWords(words ...string) completer {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
