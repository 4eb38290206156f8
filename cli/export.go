package cli

import (
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/terminal"
)

func (p *program) export() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export [OPTIONS] CONTAINER",
		Short: "Write the files of a container as a tar",
		Example: `  berth export -o web.tar web
  berth export web | tar -t`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := p.toFile(output, func(w io.Writer) error {
				return p.node().ContainerExport(cmd.Context(), args[0], w)
			})
			return p.meantContainer(cmd.Context(), err, args[0])
		},
		ValidArgsFunction: completeAll(1, p.containerNames),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to a file instead of stdout")
	return cmd
}

// toFile writes to a file, which appears only when it is whole, or to stdout
// where name is empty.
func (p *program) toFile(name string, write func(io.Writer) error) (err error) {
	if name == "" {
		if terminal.Is(p.stdout) {
			return errs.New(errs.Invalid, "an archive would only garble the terminal: use -o FILE, or > FILE")
		}
		return write(p.stdout)
	}
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() { // a device, such as /dev/null
		return intoDevice(name, write)
	}
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return errs.New(errs.Invalid, "write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	if err := write(file); err != nil {
		return err
	}
	if err := file.Chmod(0o644); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), name)
}

func intoDevice(name string, write func(io.Writer) error) error {
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return errs.New(errs.Invalid, "write %s: %w", name, err)
	}
	defer file.Close()
	return write(file)
}
