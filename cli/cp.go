package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/table"
	"berth/cli/terminal"
	"berth/spec"
)

type cpVerb struct {
	*program
	archive, followLink, quiet bool
}

func (p *program) cp() *cobra.Command {
	v := &cpVerb{program: p}
	cmd := &cobra.Command{
		Use:   "cp [OPTIONS] CONTAINER:SOURCE TARGET|-  or  SOURCE|- CONTAINER:TARGET",
		Short: "Copy files between a container and here",
		Long: `Copy a file or folder out of a container or into one, whether it runs or not.
A target that is a folder gets the source put into it; a source folder that ends
in /. means what is in it. - is a tar on stdin or stdout.`,
		Example: `  berth cp web:/etc/nginx/nginx.conf .
  berth cp site/. web:/var/www
  berth cp web:/var/log - | tar -t`,
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.copy(cmd.Context(), args[0], args[1])
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) >= 2 || strings.ContainsAny(word, "/.:") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			names, _ := completeAll(-1, p.containerNames)(cmd, nil, word)
			for i := range names {
				names[i] += ":/"
			}
			return names, cobra.ShellCompDirectiveNoSpace
		},
	}
	cmd.Flags().BoolVarP(&v.archive, "archive", "a", false, "keep the ids of users and groups")
	cmd.Flags().BoolVarP(&v.followLink, "follow-link", "L", false, "copy what a symbolic link points to, not the link")
	cmd.Flags().BoolVarP(&v.quiet, "quiet", "q", false, "do not say how much was copied")
	return cmd
}

// place is one end of a copy.
type place struct {
	container string // empty for here
	path      string // without the trailing /.
	stream    bool   // stdin or stdout
	inside    bool   // ended in /. : what is in the folder
	folder    bool   // ended in / : must be a folder
}

// parsePlace tells container:path from a path that only has a colon in it.
func parsePlace(text string) (place, error) {
	if text == "-" {
		return place{stream: true}, nil
	}
	at := place{path: text}
	if name, rest, found := strings.Cut(text, ":"); found && name != "" && !strings.ContainsAny(name, "/") && !strings.HasPrefix(text, ".") {
		at = place{container: name, path: rest}
	}
	if at.path == "" {
		return place{}, errs.New(errs.Invalid, "%q names no path", text)
	}
	base := at.path[strings.LastIndex(at.path, "/")+1:]
	at.inside = base == "."
	at.folder = base == ""
	if at.container != "" {
		at.path = path.Clean("/" + at.path) // paths in containers begin at their root
	} else {
		at.path = filepath.Clean(at.path)
	}
	return at, nil
}

func (v *cpVerb) copy(ctx context.Context, source, target string) error {
	from, err := parsePlace(source)
	if err != nil {
		return err
	}
	to, err := parsePlace(target)
	if err != nil {
		return err
	}
	var copied int64
	switch {
	case (from.container == "") == (to.container == ""):
		return errs.New(errs.Invalid, "one of source and target must be CONTAINER:PATH, the other a path here or -")
	case from.container != "":
		copied, err = v.out(ctx, from, to)
		err = v.meantContainer(ctx, err, from.container)
	default:
		copied, err = v.in(ctx, from, to)
		err = v.meantContainer(ctx, err, to.container)
	}
	if err != nil {
		return err
	}
	if !v.quiet && !to.stream {
		fmt.Fprintf(v.stderr, "Copied %s to %s\n", table.Size(copied), target)
	}
	return nil
}

// out copies from a container to here.
func (v *cpVerb) out(ctx context.Context, from, to place) (int64, error) {
	source := from.path // what a link is called stays its name
	if v.followLink || from.folder || from.inside {
		var err error
		if source, err = v.resolve(ctx, from.container, from.path); err != nil {
			return 0, err
		}
	}
	if to.stream {
		if terminal.Is(v.stdout) {
			return 0, errs.New(errs.Invalid, "a tar would only garble the terminal: use > FILE")
		}
		_, err := v.node().ContainerCopyFrom(ctx, from.container, source, v.stdout)
		return 0, err
	}
	stat, err := v.node().ContainerStatPath(ctx, from.container, source)
	if err != nil {
		return 0, err
	}
	target, err := localTarget(from, to, fs.FileMode(stat.Mode).IsDir())
	if err != nil {
		return 0, err
	}
	tarOut, tarIn := io.Pipe()
	var fetching sync.WaitGroup
	fetching.Go(func() {
		_, err := v.node().ContainerCopyFrom(ctx, from.container, source, tarIn)
		tarIn.CloseWithError(err)
	})
	copied, err := unpack(tarOut, target, v.archive)
	tarOut.CloseWithError(err)
	fetching.Wait()
	return copied, err
}

// localTarget is the path here that the source itself becomes.
func localTarget(from, to place, isDir bool) (string, error) {
	info, err := os.Stat(to.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if to.folder && !isDir || to.inside {
			return "", errs.New(errs.Invalid, "the folder %s does not exist", to.path)
		}
		if parent := filepath.Dir(to.path); !isFolder(parent) {
			return "", errs.New(errs.Invalid, "the folder %s does not exist", parent)
		}
		return to.path, nil
	case err != nil:
		return "", errs.New(errs.Invalid, "%w", err)
	case !info.IsDir() && isDir:
		return "", errs.New(errs.Invalid, "%s is a file; a folder cannot be copied onto it", to.path)
	case !info.IsDir() && to.folder:
		return "", errs.New(errs.Invalid, "%s is no folder", to.path)
	case info.IsDir() && (!isDir || !from.inside):
		return filepath.Join(to.path, path.Base(from.path)), nil
	}
	return to.path, nil
}

func isFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// in copies from here into a container.
func (v *cpVerb) in(ctx context.Context, from, to place) (int64, error) {
	resolved, err := v.resolve(ctx, to.container, to.path)
	missing := errors.Is(err, errs.NotFound)
	if err != nil && !missing {
		return 0, err
	}
	var there spec.PathStat
	if !missing {
		to.path = resolved
		if there, err = v.node().ContainerStatPath(ctx, to.container, to.path); err != nil {
			return 0, err
		}
	}
	intoFolder := fs.FileMode(there.Mode).IsDir() && !missing
	if from.stream {
		if !intoFolder {
			return 0, errs.New(errs.Invalid, "a tar is unpacked into a folder, which %s is not", to.path)
		}
		counted := &countingReader{r: v.stdin}
		err := v.node().ContainerCopyTo(ctx, to.container, to.path, counted, false)
		return counted.n, err
	}
	look := os.Lstat
	follow := v.followLink || from.folder || from.inside // link/ is what it points to
	if follow {
		look = os.Stat
	}
	info, err := look(from.path)
	if err != nil {
		return 0, errs.New(errs.Invalid, "%w", err)
	}
	folder, name, err := containerTarget(from, to, info.IsDir(), intoFolder, missing)
	if err != nil {
		return 0, err
	}
	return v.send(ctx, from.path, follow, to.container, folder, name)
}

// containerTarget is the folder in the container to unpack into, and the name
// in it that the source gets; "." where it is the folder itself.
func containerTarget(from, to place, isDir, intoFolder, missing bool) (folder, name string, err error) {
	switch {
	case intoFolder && isDir && from.inside:
		return to.path, ".", nil
	case intoFolder:
		absolute, err := filepath.Abs(from.path)
		if err != nil {
			return "", "", errs.New(errs.Invalid, "%w", err)
		}
		return to.path, filepath.Base(absolute), nil
	case !missing && isDir:
		return "", "", errs.New(errs.Invalid, "%s:%s is a file; a folder cannot be copied onto it", to.container, to.path)
	case to.folder && !isDir || to.inside:
		return "", "", errs.New(errs.Invalid, "the folder %s:%s does not exist", to.container, to.path)
	}
	return path.Dir(to.path), path.Base(to.path), nil
}

// send packs the source and has it unpacked at the other end.
func (v *cpVerb) send(ctx context.Context, source string, follow bool, container, folder, name string) (int64, error) {
	tarOut, tarIn := io.Pipe()
	var packing sync.WaitGroup
	var copied int64
	var packErr error
	packing.Go(func() {
		copied, packErr = pack(tarIn, source, name, follow, v.archive)
		tarIn.CloseWithError(packErr)
	})
	err := v.node().ContainerCopyTo(ctx, container, folder, tarOut, false)
	tarOut.CloseWithError(io.ErrClosedPipe)
	packing.Wait()
	if packErr != nil && !errors.Is(packErr, io.ErrClosedPipe) {
		err = packErr
	}
	return copied, err
}

// resolve follows symbolic links at the end of a path in a container.
func (v *cpVerb) resolve(ctx context.Context, container, name string) (string, error) {
	for range 40 { // as many as the kernel follows
		stat, err := v.node().ContainerStatPath(ctx, container, name)
		if err != nil {
			return name, err
		}
		if fs.FileMode(stat.Mode)&fs.ModeSymlink == 0 || stat.Target == "" {
			return name, nil
		}
		if path.IsAbs(stat.Target) {
			name = path.Clean(stat.Target)
		} else {
			name = path.Join(path.Dir(name), stat.Target)
		}
	}
	return "", errs.New(errs.Invalid, "%s:%s: too many symbolic links", container, name)
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
