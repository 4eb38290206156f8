package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/base/errs"
	"berth/cli/table"
)

// inspectable is one sort of thing that inspect can find.
type inspectable struct {
	kind string
	get  func(ctx context.Context, ref string) (any, error)
}

// inspectables in the order in which a name is looked for.
func (p *program) inspectables(sizes bool) []inspectable {
	return []inspectable{
		{"container", func(ctx context.Context, ref string) (any, error) { return p.inspectContainer(ctx, ref, sizes) }},
		{"image", func(ctx context.Context, ref string) (any, error) { return p.node().ImageGet(ctx, ref) }},
		{"network", func(ctx context.Context, ref string) (any, error) { return p.node().NetworkGet(ctx, ref) }},
		{"volume", func(ctx context.Context, ref string) (any, error) { return p.node().VolumeGet(ctx, ref) }},
		{"pod", p.inspectPod},
		{"exec", func(ctx context.Context, ref string) (any, error) { return p.node().ExecGet(ctx, ref) }},
	}
}

const inspectKinds = "container, image, network, volume, pod or exec"

type inspectVerb struct {
	*program
	format, kind string
	size         bool
}

func (p *program) inspect() *cobra.Command {
	v := &inspectVerb{program: p}
	cmd := &cobra.Command{
		Use:   "inspect [OPTIONS] NAME...",
		Short: "Show all that is known of containers, images, networks, volumes and pods",
		Long: `Show all that is known of containers, images, networks, volumes or pods, as a
JSON list or by a Go template. A name is looked for among containers first, then
images, networks, volumes and pods; --type says where to look.`,
		Example: `  berth inspect web
  berth inspect -f '{{.State.Status}} {{.State.Pid}}' web
  berth inspect -f '{{json .Config.Env}}' alpine
  berth inspect --type volume data`,
		Args: arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error { return v.show(cmd.Context(), args) },
		ValidArgsFunction: completeAll(-1, func(ctx context.Context) ([]string, error) {
			var names []string
			for _, list := range []lookup{p.containerNames, p.imageNames, p.networkNames, p.volumeNames, p.podNames} {
				more, err := list(ctx)
				if err != nil {
					return nil, err
				}
				names = append(names, more...)
			}
			return names, nil
		}),
	}
	v.flags(cmd)
	cmd.Flags().StringVar(&v.kind, "type", "", "what to look for: "+inspectKinds)
	cmd.Flags().BoolVarP(&v.size, "size", "s", false, "count the disk that a container takes")
	completeFlag(cmd, "type", completeWords("container", "image", "network", "volume", "pod", "exec"))
	return cmd
}

func (v *inspectVerb) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&v.format, "format", "f", "", "json, or a Go TEMPLATE")
	completeFlag(cmd, "format", completeWords("json"))
}

// inspectOf is inspect for one sort of thing, as in berth network inspect.
func (p *program) inspectOf(kind string, all lookup) *cobra.Command {
	v := &inspectVerb{program: p, kind: kind}
	cmd := &cobra.Command{
		Use:               fmt.Sprintf("inspect [OPTIONS] %s...", strings.ToUpper(kind)),
		Short:             fmt.Sprintf("Show all that is known of %ss", kind),
		Example:           fmt.Sprintf("  berth %s inspect NAME\n  berth %s inspect -f '{{json .}}' NAME", kind, kind),
		Args:              arguments(1, -1),
		RunE:              func(cmd *cobra.Command, args []string) error { return v.show(cmd.Context(), args) },
		ValidArgsFunction: completeAll(-1, all),
	}
	v.flags(cmd)
	if kind == "container" {
		cmd.Flags().BoolVarP(&v.size, "size", "s", false, "count the disk that a container takes")
	}
	return cmd
}

func (v *inspectVerb) show(ctx context.Context, refs []string) error {
	kinds := v.inspectables(v.size)
	if v.kind != "" {
		kinds = slices.DeleteFunc(kinds, func(k inspectable) bool { return k.kind != v.kind })
		if len(kinds) == 0 {
			return errs.New(errs.Invalid, "--type %q: expected "+inspectKinds, v.kind)
		}
	}
	found := []any{}
	var failed []error
	for _, ref := range refs {
		thing, err := find(ctx, kinds, ref)
		if err != nil {
			failed = append(failed, v.meant(ctx, err, ref))
			continue
		}
		found = append(found, thing)
	}
	if err := v.write(v.stdout, found); err != nil {
		return err
	}
	return errors.Join(failed...)
}

func (v *inspectVerb) meant(ctx context.Context, err error, ref string) error {
	switch v.kind {
	case "", "container":
		return meant(ctx, err, ref, "ps -a", v.containerNames)
	case "image":
		return v.meantImage(ctx, err, ref)
	case "network":
		return v.meantNetwork(ctx, err, ref)
	case "volume":
		return v.meantVolume(ctx, err, ref)
	case "pod":
		return v.meantPod(ctx, err, ref)
	}
	return err
}

// find looks for ref in one sort after the other.
func find(ctx context.Context, kinds []inspectable, ref string) (any, error) {
	var tried []string
	for _, kind := range kinds {
		thing, err := kind.get(ctx, ref)
		if err == nil {
			return thing, nil
		}
		// Other sorts have other rules for names: what is no name of a volume
		// is simply not one.
		if !errors.Is(err, errs.NotFound) && (len(kinds) == 1 || !errors.Is(err, errs.Invalid)) {
			return nil, err
		}
		tried = append(tried, kind.kind)
	}
	return nil, errs.New(errs.NotFound, "no such %s: %s", strings.Join(tried, ", "), ref)
}

func (v *inspectVerb) write(w io.Writer, found []any) error {
	if v.format == "" {
		return writeIndented(w, found)
	}
	for _, thing := range found {
		if v.format == "json" {
			if err := writeLine(w, thing); err != nil {
				return err
			}
			continue
		}
		if err := executeAny(w, v.format, thing); err != nil {
			return err
		}
	}
	return nil
}

func writeIndented(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "    ")
	return encoder.Encode(v)
}

func writeLine(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// executeAny runs a template over a thing, whose fields may be named as in
// Go, or as in its JSON.
func executeAny(w io.Writer, format string, thing any) error {
	t, err := table.Parse(format)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	err = t.Execute(&out, thing)
	if err != nil {
		byJSON, jsonErr := asMap(thing)
		if jsonErr != nil {
			return jsonErr
		}
		var again bytes.Buffer
		if t.Option("missingkey=error").Execute(&again, byJSON) != nil {
			return errs.New(errs.Invalid, "format: %w; -f '{{json .}}' shows what there is", err)
		}
		out = again
	}
	out.WriteByte('\n')
	_, err = out.WriteTo(w)
	return err
}

func asMap(thing any) (map[string]any, error) {
	data, err := json.Marshal(thing)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // or large numbers would be printed as 1e+09
	var m map[string]any
	return m, decoder.Decode(&m)
}
