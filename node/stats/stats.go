// Package stats reads what containers use out of their cgroups, version 1
// and 2, and out of /proc, without running anything.
//
// A cgroup is named by its path under the root of each hierarchy, such as
// /berth/<id>: the one that stands in the container's OCI spec. What a
// kernel or a hierarchy does not tell is left zero; a cgroup that is gone is
// errs.NotFound.
package stats

import (
	"berth/base/errs"
	"berth/spec"
)

// Reader reads the cgroups of one machine. It holds no files open and may be
// used by many at once.
type Reader struct{}

// Open finds the machine's cgroup hierarchies.
func Open() (*Reader, error) { return nil, errs.Unsupported }

// Read gives what the cgroup uses; network counters are those that pid, one
// of its processes, sees (none where pid is 0). ID and Name are the
// caller's to set.
func (r *Reader) Read(cgroup string, pid int) (spec.Stats, error) {
	return spec.Stats{}, errs.Unsupported
}

// OOMKills counts the processes of the cgroup that were killed for want of
// memory.
func (r *Reader) OOMKills(cgroup string) (uint64, error) { return 0, errs.Unsupported }

// Pids lists the processes in the cgroup and in those below it.
func (r *Reader) Pids(cgroup string) ([]int, error) { return nil, errs.Unsupported }
