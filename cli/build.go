package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/spec"
)

// buildFlags are what build takes. Their words are docker's.
type buildFlags struct {
	tags, buildArgs, labels, hosts, ulimits  []string
	secrets, sshs, contexts, allowed         []string
	platforms, cacheFrom, cacheTo, uncached  []string
	outputs, attests                         []string
	file, target, network, shmSize           string
	progress, provenance, sbom, cgroupParent string
	imageIDFile, metadataFile                string
	noCache, pull, push, load, quiet         bool
}

func (p *program) build() *cobra.Command {
	f := &buildFlags{}
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] FOLDER|URL|-",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile and a context: a folder, the URL of a git
repository or of a tar archive, or - for a tar archive or just a Dockerfile on
stdin. A .dockerignore in the folder says what of it does not take part.

BuildKit builds, and the node keeps one: it starts with the first build and stops
when there was none for a while. Its cache makes the next builds fast; see berth
builder. What is built is in berth images, unless -o puts it elsewhere.`,
		Example: `  berth build -t app .
  berth build -t registry.example.com/app:1.2 --push .
  berth build -f deploy/Dockerfile --build-arg VERSION=1.2 --target test .
  berth build --secret id=token,src=token.txt -o out https://github.com/me/app.git#main
  tar -c . | berth build -t app -
  berth build --cache-from localhost:5000/cache --cache-to localhost:5000/cache .`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.buildImage(cmd.Context(), f, args[0])
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	f.add(cmd)
	return cmd
}

func (f *buildFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.tags, "tag", "t", nil, "name of the image, NAME[:TAG]")
	flags.StringVarP(&f.file, "file", "f", "", "the Dockerfile (default FOLDER/Dockerfile; - for stdin)")
	flags.StringArrayVar(&f.buildArgs, "build-arg", nil, "value of an ARG, NAME=value; NAME alone takes it from the environment")
	flags.StringVar(&f.target, "target", "", "build stage to stop at")
	flags.StringArrayVar(&f.platforms, "platform", nil, "os/arch[/variant] to build for; several make an index")
	flags.StringArrayVarP(&f.outputs, "output", "o", nil, "where the result goes: FOLDER, - for a tar, or type=image|local|tar|oci|docker|registry|cacheonly,…")
	flags.BoolVar(&f.push, "push", false, "push the image to the registry of its name")
	flags.BoolVar(&f.load, "load", false, "keep the image on this node, also where -o puts the result elsewhere")
	flags.BoolVar(&f.noCache, "no-cache", false, "run every step again")
	flags.StringArrayVar(&f.uncached, "no-cache-filter", nil, "run the steps of these stages again")
	flags.BoolVar(&f.pull, "pull", false, "ask registries for newer base images")
	flags.StringArrayVar(&f.cacheFrom, "cache-from", nil, "take steps from there too: an image, or type=registry|local|…,…")
	flags.StringArrayVar(&f.cacheTo, "cache-to", nil, "write the cache there: an image, or type=registry|local|inline|…,…")
	flags.StringArrayVar(&f.secrets, "secret", nil, "secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=NAME]")
	flags.StringArrayVar(&f.sshs, "ssh", nil, "agent or keys for RUN --mount=type=ssh: default|ID[=SOCKET|KEY[,KEY]]")
	flags.StringArrayVar(&f.contexts, "build-context", nil, "further context: NAME=FOLDER|URL|docker-image://IMAGE|oci-layout://FOLDER")
	flags.StringArrayVar(&f.labels, "label", nil, "label of the image, key=value")
	flags.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts in RUN, name:address")
	flags.StringVar(&f.network, "network", "", "network of RUN: default, host or none")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of RUN, name=soft[:hard]")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm in RUN")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "cgroup that those of RUN are made below")
	flags.StringArrayVar(&f.allowed, "allow", nil, "grant RUN more: network.host, security.insecure")
	flags.StringArrayVar(&f.attests, "attest", nil, "attestation to make: type=provenance|sbom,…")
	flags.StringVar(&f.provenance, "provenance", "", "the same as --attest type=provenance,…: true, false, mode=max")
	flags.StringVar(&f.sbom, "sbom", "", "the same as --attest type=sbom,…: true, false, generator=IMAGE")
	flags.StringVar(&f.progress, "progress", os.Getenv("BUILDKIT_PROGRESS"), "how to show how it goes: auto, plain, tty, rawjson, quiet (BUILDKIT_PROGRESS; default auto)")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show nothing but the image's id at the end")
	flags.StringVar(&f.imageIDFile, "iidfile", "", "write the image's id to a file")
	flags.StringVar(&f.metadataFile, "metadata-file", "", "write what is known of the result to a file, as JSON")
	flags.Lookup("progress").DefValue = ""
	completeFlag(cmd, "progress", completeWords("auto", "plain", "tty", "rawjson", "quiet"))
	completeFlag(cmd, "network", completeWords("default", "host", "none"))
	completeFlag(cmd, "allow", completeWords("network.host", "security.insecure"))
}

// buildImage has BuildKit build, and shows how it goes as BuildKit does.
func (p *program) buildImage(ctx context.Context, f *buildFlags, source string) (err error) {
	scratch, err := os.MkdirTemp("", "berth-build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	args, err := f.options()
	if err != nil {
		return err
	}
	from, err := p.buildContext(f.file, source, scratch)
	if err != nil {
		return err
	}
	builder, err := p.node().BuilderStart(ctx)
	if err != nil {
		return err
	}
	told := filepath.Join(scratch, "told")
	args = append(from.arguments(), args...)
	if err := p.buildctl(ctx, builder, append([]string{"build", "--frontend", "dockerfile.v0", "--metadata-file", told}, args...)); err != nil {
		return err
	}
	return p.tellResult(f, told)
}

// buildctl runs BuildKit's own client at the terminal of ours. It says itself
// what goes wrong.
func (p *program) buildctl(ctx context.Context, builder spec.Builder, args []string) error {
	cmd := exec.CommandContext(ctx, builder.Client, append([]string{"--addr", "unix://" + builder.Socket, "--timeout", "30"}, args...)...)
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	// Told to stop it tells BuildKit, whose steps then end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exit, failed := errors.AsType[*exec.ExitError](err); failed {
		if exit.ExitCode() < 0 {
			return errs.New(errs.Internal, "buildctl: %s", exit.ProcessState)
		}
		return &exitError{code: exit.ExitCode()}
	}
	return err
}

// tellResult hands on what BuildKit told of the result: told is its file, which
// is there unless there is nothing to tell.
func (p *program) tellResult(f *buildFlags, told string) error {
	text, err := os.ReadFile(told)
	if errors.Is(err, os.ErrNotExist) {
		text, err = []byte("{}\n"), nil
	}
	if err != nil {
		return err
	}
	var result struct {
		Config string `json:"containerimage.config.digest"`
		Target string `json:"containerimage.digest"`
	}
	if err := json.Unmarshal(text, &result); err != nil {
		return errs.New(errs.Internal, "what BuildKit tells of the result: %w", err)
	}
	id := result.Config
	if id == "" {
		id = result.Target // of an index
	}
	if f.metadataFile != "" {
		if err := os.WriteFile(f.metadataFile, text, 0o666); err != nil { //nolint:gosec // as the umask has it
			return errs.New(errs.Invalid, "metadata file: %w", err)
		}
	}
	if f.imageIDFile != "" && id != "" {
		if err := os.WriteFile(f.imageIDFile, []byte(id), 0o666); err != nil { //nolint:gosec // as the umask has it
			return errs.New(errs.Invalid, "iidfile: %w", err)
		}
	}
	if f.quiet && id != "" {
		fmt.Fprintln(p.stdout, id)
	}
	return nil
}
