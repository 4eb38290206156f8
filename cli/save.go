package cli

import (
	"io"

	"github.com/spf13/cobra"
)

func (p *program) save() *cobra.Command {
	var output, format string
	formats := []string{"docker-archive", "oci-archive"}
	cmd := &cobra.Command{
		Use:   "save [OPTIONS] IMAGE...",
		Short: "Write images to an archive",
		Example: `  berth save -o app.tar app:1 app:2
  berth save --format oci-archive alpine | zstd > alpine.tar.zst`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("format", format, formats...); err != nil {
				return err
			}
			err := p.toFile(output, func(w io.Writer) error {
				return p.node().ImageSave(cmd.Context(), args, format, w)
			})
			if len(args) == 1 {
				err = p.meantImage(cmd.Context(), err, args[0])
			}
			return err
		},
		ValidArgsFunction: completeAll(-1, p.imageNames),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to a file instead of stdout")
	cmd.Flags().StringVar(&format, "format", "docker-archive", "docker-archive or oci-archive")
	completeFlag(cmd, "format", completeWords(formats...))
	return cmd
}
