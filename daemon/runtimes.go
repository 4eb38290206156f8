package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/node/container"
	"berth/node/container/oci"
	"berth/node/keeper"
)

// runtimes are the OCI runtime programs of a node.
type runtimes struct {
	byName map[string]container.Runtime
	usual  string // used where a container names none

	// versions asks each program what it is, once.
	versions func() map[string]string
}

// openRuntimes finds runc, crun and those that the configuration names.
func openRuntimes(ctx context.Context, c NodeConfig, state string, k *keeper.Keeper, m *metrics) (*runtimes, error) {
	if err := oci.EndLaunches(ctx, state); err != nil {
		return nil, err
	}
	wanted := map[string]RuntimeConfig{"crun": {}, "runc": {}}
	maps.Copy(wanted, c.Runtimes)
	r := &runtimes{byName: map[string]container.Runtime{}}
	for name, config := range wanted {
		driver, err := oci.New(oci.Config{
			Name: name, Path: config.Path, Args: config.Args, Foreign: config.Foreign,
			State: state, Keeper: k, Timeout: time.Duration(c.RuntimeSeconds) * time.Second,
		})
		switch _, named := c.Runtimes[name]; {
		case err == nil:
			r.byName[name] = timedOCI{timed{driver, m.runtime}, driver, driver}
		case named || !errors.Is(err, errs.NotFound):
			return nil, err
		}
	}
	if err := r.choose(c.Runtime); err != nil {
		return nil, err
	}
	r.versions = sync.OnceValue(func() map[string]string {
		versions := map[string]string{}
		for name, runtime := range r.byName {
			version, err := runtime.Version(ctx)
			if err != nil {
				version = "does not answer: " + err.Error()
			}
			versions[name] = version
		}
		return versions
	})
	return r, nil
}

// names lists the runtimes.
func (r *runtimes) names() []string { return slices.Sorted(maps.Keys(r.byName)) }

// choose picks the usual runtime: crun, the faster one, where it works, else
// runc.
func (r *runtimes) choose(name string) error {
	names := r.names()
	switch {
	case len(names) == 0:
		return errs.New(errs.NotFound, "neither crun nor runc is installed: apt-get install crun")
	case name != "" && r.byName[name] == nil:
		return errs.New(errs.Invalid, "there is no runtime %q; there are %s", name, strings.Join(names, ", "))
	case name != "":
		r.usual = name
	case r.byName["crun"] != nil && (r.byName["runc"] == nil || crunTakesCgroups()):
		r.usual = "crun"
	case r.byName["runc"] != nil:
		r.usual = "runc"
	default:
		r.usual = names[0]
	}
	return nil
}

// crunTakesCgroups is false where crun up to 1.8 refuses to work: on a machine
// whose controllers are on cgroup v1 but for hugetlb, which is on neither.
func crunTakesCgroups() bool {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return true // all of version 2
	}
	known, err := os.ReadFile("/proc/cgroups")
	if err != nil || !strings.Contains(string(known), "\nhugetlb") {
		return true
	}
	_, err = os.Stat("/sys/fs/cgroup/hugetlb/tasks")
	return err == nil
}
