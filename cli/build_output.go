package cli

import (
	"slices"
	"strings"

	"berth/base/errs"
)

// buildOutput is where a result goes.
type buildOutput struct {
	kind   string
	fields []string // all others
}

func (o buildOutput) has(key string) bool {
	return slices.ContainsFunc(o.fields, func(f string) bool { return strings.HasPrefix(f, key+"=") })
}

func (o *buildOutput) set(key, value string) {
	if !o.has(key) {
		o.fields = append(o.fields, key+"="+value)
	}
}

func (o buildOutput) String() string {
	return joinFields(append([]string{"type=" + o.kind}, o.fields...))
}

// nameless begins the name of an image that has none: what is found by its
// digest only.
const nameless = "<none>"

// addOutputs adds where the result goes: by itself an image on the node.
func (f *buildFlags) addOutputs(args *buildctlArgs) error {
	names, err := f.names()
	if err != nil {
		return err
	}
	var outputs []buildOutput
	for _, text := range f.outputs {
		o, err := parseOutput(text)
		if err != nil {
			return err
		}
		outputs = append(outputs, o)
	}
	isImage := func(o buildOutput) bool { return o.kind == "image" }
	if len(outputs) == 0 || (f.load || f.push) && !slices.ContainsFunc(outputs, isImage) {
		outputs = append(outputs, buildOutput{kind: "image"})
	}
	for _, o := range outputs {
		if o.kind == "cacheonly" {
			continue
		}
		if o.kind == "image" && f.push {
			o.set("push", "true")
		}
		if len(names) > 0 && slices.Contains([]string{"image", "oci", "docker"}, o.kind) {
			o.set("name", strings.Join(names, ","))
		}
		if o.kind == "image" && !o.has("name") {
			if o.has("push") {
				return errs.New(errs.Invalid, "an image without a name cannot be pushed: name it by -t")
			}
			o.set("dangling-name-prefix", nameless)
		}
		*args = append(*args, "--output", o.String())
	}
	return nil
}

// parseOutput reads the value of -o. A folder alone gets the files, - makes a
// tar of them.
func parseOutput(text string) (buildOutput, error) {
	fields, err := fields(text)
	if err != nil {
		return buildOutput{}, errs.New(errs.Invalid, "--output %q: %w", text, err)
	}
	if len(fields) == 1 && !strings.HasPrefix(fields[0], "type=") {
		switch name, _, set := strings.Cut(fields[0], "="); {
		case text == "-":
			return buildOutput{"tar", []string{"dest=-"}}, nil
		case !set || name != "dest":
			return buildOutput{"local", []string{"dest=" + text}}, nil
		}
	}
	var o buildOutput
	for _, field := range fields {
		key, value, set := strings.Cut(field, "=")
		if !set {
			return o, errs.New(errs.Invalid, "--output %q: expected key=value instead of %q", text, field)
		}
		if key == "type" {
			o.kind = value
			continue
		}
		o.fields = append(o.fields, field)
	}
	switch o.kind {
	case "image", "local", "tar", "oci", "cacheonly":
	case "docker":
		if !o.has("dest") { // docker's own store there is the node's here
			o.kind = "image"
		}
	case "registry":
		o.kind = "image"
		o.set("push", "true")
	default:
		return o, oneOf("output", "type="+o.kind, "type=image", "type=local", "type=tar", "type=oci", "type=docker", "type=registry", "type=cacheonly")
	}
	return o, nil
}
