package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/progress"
	"berth/spec"
)

func (p *program) systemScrub() *cobra.Command {
	var request spec.ScrubRequest
	var format string
	cmd := &cobra.Command{
		Use:   "scrub [OPTIONS]",
		Short: "Read all that images are made of, and repair what is damaged",
		Long: `Read the files of layers, their trees, and all blobs, and hold each against its
digest. What is damaged is told with the images that it touches, and had again:
from a blob that is kept, or from the registry where the image came from, with your
login there. berth pull of such an image repairs what is left.

The node does this by itself too, slowly, every storage.scrub_days days; berth info
says when it last did. The exit code is 1 where damage stays.`,
		Example: `  berth system scrub
  berth system scrub --no-repair --format json`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" {
				if err := oneOf("format", format, "json"); err != nil {
					return err
				}
			}
			return p.runScrub(cmd.Context(), request, format == "json")
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&request.NoRepair, "no-repair", false, "only look")
	cmd.Flags().StringVar(&format, "format", "", "json: a line for each damaged part, and one for the result")
	completeFlag(cmd, "format", completeWords("json"))
	return cmd
}

func (p *program) runScrub(ctx context.Context, request spec.ScrubRequest, asJSON bool) error {
	if err := p.loginsForScrub(ctx, &request); err != nil {
		return err
	}
	var result spec.ScrubResult
	var err error
	if asJSON {
		result, err = p.node().SystemScrub(ctx, request, func(step spec.ScrubProgress) {
			switch {
			case step.Damage != nil:
				_ = writeLine(p.stdout, step.Damage)
			case step.Result != nil:
				_ = writeLine(p.stdout, step.Result)
			}
		})
	} else {
		shown := progress.NewScrub(p.stdout)
		result, err = p.node().SystemScrub(ctx, request, shown.Show)
		shown.End()
	}
	if err != nil {
		return err
	}
	if !asJSON {
		fmt.Fprintln(p.stdout, progress.Outcome(result))
		if result.Note != "" {
			fmt.Fprintln(p.stdout, result.Note)
		}
	}
	if stays := result.Damaged - result.Repaired; stays > 0 {
		return errs.New(errs.Internal, "%s damaged; pull the images that it is in again, or remove them", stay(stays))
	}
	return nil
}

// loginsForScrub adds the user's logins for the registries that images came
// from.
func (p *program) loginsForScrub(ctx context.Context, request *spec.ScrubRequest) error {
	if request.NoRepair {
		return nil
	}
	images, err := p.node().ImageList(ctx, nil)
	if err != nil {
		return err
	}
	var sources []string
	for _, image := range images {
		sources = append(sources, image.Sources...)
	}
	request.Logins, err = logins(sources)
	return err
}

func stay(n int) string {
	if n == 1 {
		return "1 part stays"
	}
	return fmt.Sprintf("%d parts stay", n)
}
