package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/client"
	"berth/spec"
)

func (p *program) wait() *cobra.Command {
	var condition string
	conditions := []string{client.NotRunning, client.NextExit, client.Removed}
	cmd := &cobra.Command{
		Use:   "wait [OPTIONS] CONTAINER...",
		Short: "Wait until containers have ended and print their exit codes",
		Example: `  berth wait job
  berth wait --condition removed job`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("condition", condition, conditions...); err != nil {
				return err
			}
			return p.waitFor(cmd.Context(), args, condition)
		},
		ValidArgsFunction: completeAll(-1, p.containersThat(running)),
	}
	cmd.Flags().StringVar(&condition, "condition", client.NotRunning, "what to wait for: not-running, next-exit or removed")
	completeFlag(cmd, "condition", completeWords(conditions...))
	return cmd
}

// waitFor waits for all at once and tells in their order.
func (p *program) waitFor(ctx context.Context, refs []string, condition string) error {
	type outcome struct {
		exit spec.Exit
		err  error
	}
	outcomes := make([]chan outcome, len(refs))
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for i, ref := range refs {
		outcomes[i] = make(chan outcome, 1)
		waiting.Go(func() {
			exit, err := p.node().ContainerWait(ctx, ref, condition)
			outcomes[i] <- outcome{exit, p.meantContainer(ctx, err, ref)}
		})
	}
	var failed []error
	for i := range refs {
		o := <-outcomes[i]
		switch {
		case o.err != nil:
			failed = append(failed, o.err)
		case o.exit.Unknown:
			failed = append(failed, errs.New(errs.Internal, "%s: the exit code is not known", refs[i]))
		default:
			fmt.Fprintln(p.stdout, o.exit.Code)
		}
	}
	return errors.Join(failed...)
}
