package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/terminal"
	"berth/spec"
)

func (p *program) load() *cobra.Command {
	var input string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "load [OPTIONS]",
		Short: "Read images from an archive",
		Long: `Read images from an archive, as berth save, docker save and others write it: an
OCI layout or a docker-archive, plain or compressed by gzip or zstd.`,
		Example: `  berth load -i app.tar.gz
  docker save app | berth load`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			archive, closeArchive, err := p.fromFile(input)
			if err != nil {
				return err
			}
			defer closeArchive()
			var images []spec.Image
			err = showing(p.stderr, quiet, func(show func(spec.Progress)) (err error) {
				images, err = p.node().ImageLoad(cmd.Context(), archive, show)
				return err
			})
			for _, image := range images {
				for _, name := range image.Names {
					fmt.Fprintln(p.stdout, "Loaded image:", familiar(name))
				}
				if len(image.Names) == 0 {
					fmt.Fprintln(p.stdout, "Loaded image ID:", image.ID)
				}
			}
			return err
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "read from a file instead of stdin")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show how it goes")
	return cmd
}

// fromFile opens a file; stdin where name is empty.
func (p *program) fromFile(name string) (r io.Reader, closeFile func(), err error) {
	if name == "" {
		if terminal.Is(p.stdin) {
			return nil, nil, errs.New(errs.Invalid, "stdin is the terminal: use -i FILE, or < FILE")
		}
		return p.stdin, func() {}, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, nil, errs.New(errs.Invalid, "read the archive: %w", err)
	}
	return file, func() { _ = file.Close() }, nil
}
