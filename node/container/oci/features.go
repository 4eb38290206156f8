package oci

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"berth/base/errs"
)

// Features is what the program says that it can do, as the OCI runtime spec's
// JSON. A program that is older than that command says nothing; then it is what
// every crun of that age can do, and of others errs.Unsupported.
func (r *Runtime) Features(ctx context.Context) ([]byte, error) {
	out, err := r.usual.output(ctx, nil, "features")
	switch {
	case ctx.Err() != nil:
		return nil, err
	case err == nil && json.Valid(out):
		return out, nil
	case r.name != "crun":
		return nil, errs.New(errs.Unsupported, "runtime %s does not say what it can do: %v", r.name, err)
	}
	can := true
	out, err = json.Marshal(features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: "1.0.2",
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: mountOptions(),
		Linux:        &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &can}}},
	})
	if err != nil {
		return nil, fmt.Errorf("runtime %s: features: %w", r.name, err)
	}
	return out, nil
}

// mountOptions are those of the spec, with their recursive forms.
func mountOptions() []string {
	options := []string{
		"async", "bind", "defaults", "dirsync", "iversion", "mand", "noiversion", "nomand", "norelatime", "private", "rbind",
		"remount", "rprivate", "rshared", "rslave", "runbindable", "shared", "silent", "slave", "sync", "tmpcopyup", "unbindable",
	}
	for _, each := range []string{
		"atime", "dev", "diratime", "exec", "noatime", "nodev", "nodiratime", "noexec", "nostrictatime", "nosuid", "nosymfollow",
		"relatime", "ro", "rw", "strictatime", "suid", "symfollow",
	} {
		options = append(options, each, "r"+each)
	}
	return options
}
