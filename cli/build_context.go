package cli

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"berth/base/errs"
	"berth/cli/terminal"
)

// buildContext is where a build takes its files from.
type buildContext struct {
	folder string // on this machine; else remote is set
	remote string // for BuildKit to fetch

	dockerfile string // its folder on this machine; empty where it is part of the remote context
	name       string // of the Dockerfile, below that folder or the remote context
}

// arguments are those of buildctl.
func (c buildContext) arguments() []string {
	args := []string{"--opt", "filename=" + c.name}
	if c.remote != "" {
		args = append(args, "--opt", "context="+c.remote)
	} else {
		args = append(args, "--local", "context="+c.folder)
	}
	if c.dockerfile == "" {
		return args
	}
	if c.remote != "" {
		args = append(args, "--opt", "dockerfilekey=dockerfile")
	}
	return append(args, "--local", "dockerfile="+c.dockerfile)
}

const usualDockerfile = "Dockerfile"

// buildContext finds the files of a build, and puts those that come on stdin
// into scratch.
func (p *program) buildContext(file, source, scratch string) (buildContext, error) {
	var c buildContext
	switch {
	case source == "-":
		if file == "-" {
			return c, errs.New(errs.Invalid, "stdin cannot be both the context and the Dockerfile")
		}
		return p.contextFromInput(file, scratch)
	case isRemote(source):
		c.remote = source
	default:
		info, err := os.Stat(source)
		if err != nil {
			return c, errs.New(errs.Invalid, "context: %w", err)
		}
		if !info.IsDir() {
			return c, errs.New(errs.Invalid, "context %s: expected a folder; -f names a Dockerfile", source)
		}
		c.folder = source
	}
	return c, p.findDockerfile(&c, file, scratch)
}

// findDockerfile completes c.
func (p *program) findDockerfile(c *buildContext, file, scratch string) error {
	if file == "-" {
		if terminal.Is(p.stdin) {
			return errs.New(errs.Invalid, "stdin is the terminal: give the Dockerfile by -f FILE, or < FILE")
		}
		c.dockerfile, c.name = filepath.Join(scratch, "dockerfile"), usualDockerfile
		return writeDockerfile(c.dockerfile, p.stdin)
	}
	if c.remote != "" && !filepath.IsAbs(file) {
		c.name = file
		if file == "" {
			c.name = usualDockerfile
		}
		return nil
	}
	if file == "" {
		file = filepath.Join(c.folder, usualDockerfile)
		if _, err := os.Stat(file); err != nil { // BuildKit knows another spelling
			if lower := filepath.Join(c.folder, "dockerfile"); exists(lower) {
				file = lower
			}
		}
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Invalid, "there is no Dockerfile %s: name it by -f", file)
	case err != nil:
		return errs.New(errs.Invalid, "Dockerfile: %w", err)
	case info.IsDir():
		return errs.New(errs.Invalid, "Dockerfile %s: it is a folder", file)
	}
	c.dockerfile, c.name = filepath.Dir(file), filepath.Base(file)
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func writeDockerfile(folder string, text io.Reader) error {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(folder, usualDockerfile))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, text)
	return errors.Join(err, out.Close())
}

// isRemote says whether BuildKit is to fetch the context. A folder of that
// name comes first.
func isRemote(source string) bool {
	if info, err := os.Stat(source); err == nil && info.IsDir() {
		return false
	}
	for _, prefix := range []string{"http://", "https://", "git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(source, prefix) {
			return true
		}
	}
	return false
}

// contextFromInput reads a tar, plain or compressed, or just a Dockerfile.
func (p *program) contextFromInput(file, scratch string) (c buildContext, err error) {
	if terminal.Is(p.stdin) {
		return c, errs.New(errs.Invalid, "stdin is the terminal: give a folder, or tar -c . | berth build -")
	}
	c.folder = filepath.Join(scratch, "context")
	if err := os.Mkdir(c.folder, 0o700); err != nil {
		return c, err
	}
	in, isTar, err := openContext(p.stdin)
	if err != nil {
		return c, errs.New(errs.Invalid, "context on stdin: %w", err)
	}
	if !isTar {
		if file != "" {
			return c, errs.New(errs.Invalid, "stdin is no tar archive: -f - builds by a Dockerfile on stdin")
		}
		c.dockerfile, c.name = filepath.Join(scratch, "dockerfile"), usualDockerfile
		return c, writeDockerfile(c.dockerfile, in)
	}
	if err := unpackContext(in, c.folder); err != nil {
		return c, errs.New(errs.Invalid, "context on stdin: %w", err)
	}
	if file == "" {
		file = usualDockerfile
	}
	if filepath.IsAbs(file) {
		return c, p.findDockerfile(&c, file, scratch)
	}
	return c, p.findDockerfile(&c, filepath.Join(c.folder, file), scratch) // it is part of the archive
}

// openContext decompresses what comes, and says whether that is a tar.
func openContext(r io.Reader) (in *bufio.Reader, isTar bool, err error) {
	in = bufio.NewReaderSize(r, 64<<10)
	start, err := in.Peek(10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	var plain io.Reader
	switch magic := string(start); {
	case strings.HasPrefix(magic, "\x1f\x8b"):
		plain, err = gzip.NewReader(in)
	case strings.HasPrefix(magic, "BZh"):
		plain, err = bzip2.NewReader(in), nil
	case strings.HasPrefix(magic, "\x28\xb5\x2f\xfd"):
		plain, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1))
	case strings.HasPrefix(magic, "\xfd7zXZ\x00"):
		return nil, false, errs.New(errs.Unsupported, "it is compressed by xz: xz -d | berth build -")
	default:
		plain, err = in, nil
	}
	if err != nil {
		return nil, false, err
	}
	in = bufio.NewReaderSize(plain, 64<<10)
	const block = 512
	header, err := in.Peek(block)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	_, failed := tar.NewReader(strings.NewReader(string(header) + strings.Repeat("\x00", 2*block))).Next()
	return in, len(header) == block && (failed == nil || errors.Is(failed, io.EOF) || errors.Is(failed, io.ErrUnexpectedEOF)), nil
}

// unpackContext writes a tar into a folder, and nothing outside of it.
func unpackContext(r io.Reader, folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacking{root: root, name: ".", seen: true}
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeXGlobalHeader { // git archive says which commit it was
			continue
		}
		parent := path.Dir(strings.TrimPrefix(path.Clean("/"+header.Name), "/"))
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return errs.New(errs.Invalid, "%s: %w", header.Name, err)
		}
		if err := u.entry(header, in); err != nil {
			return errs.New(errs.Invalid, "%s: %w", header.Name, err)
		}
	}
}
