package cli

import (
	"cmp"
	"encoding/csv"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"

	"berth/base/errs"
	"berth/cli/option"
)

// buildctlArgs are arguments of buildctl while they are put together.
type buildctlArgs []string

func (a *buildctlArgs) opt(key, value string) { *a = append(*a, "--opt", key+"="+value) }

// each adds a flag for each of the values.
func (a *buildctlArgs) each(flag string, values []string) {
	for _, value := range values {
		*a = append(*a, flag, value)
	}
}

// options are all of the flags but for those of the context, as buildctl has
// them.
func (f *buildFlags) options() (args buildctlArgs, err error) {
	for _, add := range []func(*buildctlArgs) error{
		f.addProgress, f.addArgs, f.addSteps, f.addHosts, f.addCache, f.addContexts, f.addAttests, f.addOutputs,
	} {
		if err := add(&args); err != nil {
			return nil, err
		}
	}
	args.each("--secret", f.secrets)
	args.each("--ssh", f.sshs)
	return args, nil
}

func (f *buildFlags) addProgress(args *buildctlArgs) error {
	progress := cmp.Or(f.progress, "auto")
	if err := oneOf("progress", progress, "auto", "plain", "tty", "rawjson", "quiet"); err != nil {
		return err
	}
	if f.quiet {
		progress = "quiet"
	}
	*args = append(*args, "--progress", progress)
	return nil
}

func (f *buildFlags) addArgs(args *buildctlArgs) error {
	values, err := option.Env(nil, f.buildArgs, os.LookupEnv)
	if err != nil {
		return errs.New(errs.Invalid, "--build-arg: %w", err)
	}
	const epoch = "SOURCE_DATE_EPOCH" // every tool that builds heeds it
	if at := os.Getenv(epoch); at != "" && !slices.ContainsFunc(values, func(v string) bool { return strings.HasPrefix(v, epoch+"=") }) {
		values = append(values, epoch+"="+at)
	}
	for _, value := range values {
		*args = append(*args, "--opt", "build-arg:"+value)
	}
	for _, label := range f.labels {
		key, value, err := option.KeyValue(label)
		if err != nil {
			return errs.New(errs.Invalid, "--label: %w", err)
		}
		args.opt("label:"+key, value)
	}
	return nil
}

// addSteps adds what is said about which steps run, for what, and how.
func (f *buildFlags) addSteps(args *buildctlArgs) error {
	if f.target != "" {
		args.opt("target", f.target)
	}
	if len(f.platforms) > 0 {
		args.opt("platform", strings.Join(f.platforms, ","))
	}
	// An image that is here is as good as the registry's, unless it is asked.
	resolve := "local"
	if f.pull {
		resolve = "pull"
	}
	args.opt("image-resolve-mode", resolve)
	if f.noCache {
		*args = append(*args, "--no-cache")
	} else if len(f.uncached) > 0 {
		args.opt("no-cache", strings.Join(f.uncached, ","))
	}
	if f.shmSize != "" {
		size, err := option.Bytes(f.shmSize)
		if err != nil {
			return errs.New(errs.Invalid, "--shm-size: %w", err)
		}
		args.opt("shm-size", strconv.FormatInt(size, 10))
	}
	for _, limit := range f.ulimits {
		if _, err := option.Rlimit(limit); err != nil {
			return err
		}
	}
	if len(f.ulimits) > 0 {
		args.opt("ulimit", strings.Join(f.ulimits, ","))
	}
	if f.cgroupParent != "" {
		args.opt("cgroup-parent", f.cgroupParent)
	}
	args.each("--allow", f.allowed)
	return nil
}

func (f *buildFlags) addHosts(args *buildctlArgs) error {
	var hosts []string
	for _, host := range f.hosts {
		line, err := option.Host(host)
		if err != nil {
			return err
		}
		name, address, _ := strings.Cut(line, ":")
		hosts = append(hosts, name+"="+address)
	}
	if len(hosts) > 0 {
		args.opt("add-hosts", strings.Join(hosts, ","))
	}
	switch f.network {
	case "", "default":
	case "none":
		args.opt("force-network-mode", "none")
	case "host":
		args.opt("force-network-mode", "host")
		if !slices.Contains(f.allowed, "network.host") {
			*args = append(*args, "--allow", "network.host")
		}
	default:
		return oneOf("network", f.network, "default", "host", "none")
	}
	return nil
}

func (f *buildFlags) addCache(args *buildctlArgs) error {
	named := func(values []string) []string {
		var out []string
		for _, value := range values {
			if !strings.Contains(value, "=") {
				value = "type=registry,ref=" + fullName(value)
			}
			out = append(out, value)
		}
		return out
	}
	args.each("--import-cache", named(f.cacheFrom))
	args.each("--export-cache", named(f.cacheTo))
	return nil
}

func (f *buildFlags) addContexts(args *buildctlArgs) error {
	for i, text := range f.contexts {
		name, source, found := strings.Cut(text, "=")
		if !found || name == "" || source == "" {
			return errs.New(errs.Invalid, "--build-context %q: expected NAME=FOLDER or NAME=URL", text)
		}
		layout, isLayout := strings.CutPrefix(source, "oci-layout://")
		switch {
		case isLayout:
			// The digest or tag of the image in the layout goes along.
			folder, at := layout, ""
			if cut := strings.LastIndexAny(layout, "@:"); cut > 0 && !strings.Contains(layout[cut:], "/") {
				if digest := strings.LastIndex(layout, "@"); digest > 0 {
					cut = digest
				}
				folder, at = layout[:cut], layout[cut:]
			}
			key := "layout-" + strconv.Itoa(i)
			*args = append(*args, "--oci-layout", key+"="+folder)
			args.opt("context:"+name, "oci-layout://"+key+at)
		case strings.Contains(source, "://") || strings.HasPrefix(source, "target:"):
			args.opt("context:"+name, source)
		default:
			if info, err := os.Stat(source); err != nil || !info.IsDir() {
				return errs.New(errs.Invalid, "--build-context %s: there is no folder %s", name, source)
			}
			*args = append(*args, "--local", name+"="+source)
			args.opt("context:"+name, "local:"+name)
		}
	}
	return nil
}

func (f *buildFlags) addAttests(args *buildctlArgs) error {
	wanted := map[string]string{}
	for _, text := range f.attests {
		fields, err := fields(text)
		if err != nil {
			return errs.New(errs.Invalid, "--attest %q: %w", text, err)
		}
		kind := ""
		fields = slices.DeleteFunc(fields, func(field string) bool {
			value, is := strings.CutPrefix(field, "type=")
			if is {
				kind = value
			}
			return is
		})
		if kind == "" {
			return errs.New(errs.Invalid, "--attest %q: expected type=provenance or type=sbom", text)
		}
		wanted[kind] = strings.Join(fields, ",")
	}
	for kind, value := range map[string]string{"provenance": f.provenance, "sbom": f.sbom} {
		switch on, err := strconv.ParseBool(value); {
		case value == "":
		case err != nil:
			wanted[kind] = value
		case on:
			wanted[kind] = ""
		default:
			delete(wanted, kind)
		}
	}
	for _, kind := range []string{"provenance", "sbom"} {
		if value, want := wanted[kind]; want {
			args.opt("attest:"+kind, value)
			delete(wanted, kind)
		}
	}
	for kind := range wanted {
		return errs.New(errs.Invalid, "attestation %q: expected provenance or sbom", kind)
	}
	return nil
}

// names are the image's, in full.
func (f *buildFlags) names() ([]string, error) {
	var names []string
	for _, tag := range f.tags {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			return nil, errs.New(errs.Invalid, "tag %q: %w", tag, err)
		}
		if _, digested := named.(reference.Digested); digested {
			return nil, errs.New(errs.Invalid, "tag %q: nobody knows the digest before it is built", tag)
		}
		if name := reference.TagNameOnly(named).String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// fields reads the comma-separated fields of a value, which may be quoted.
func fields(text string) ([]string, error) {
	return csv.NewReader(strings.NewReader(text)).Read()
}

// joinFields is the way back.
func joinFields(fields []string) string {
	var out strings.Builder
	w := csv.NewWriter(&out)
	_ = w.Write(fields) // to memory
	w.Flush()
	return strings.TrimSuffix(out.String(), "\n")
}
