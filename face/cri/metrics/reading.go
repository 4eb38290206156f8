package metrics

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/node/stats"
	"berth/spec"
)

// reading is what was read of one cgroup.
type reading struct {
	stats.Usage
	parts  stats.Parts
	cached bool // by an earlier call
	// rate is how much CPU it used of late, in nanoseconds per second.
	rate   uint64
	before point
}

// point is how much CPU had been used when.
type point struct {
	at   time.Time
	used uint64
}

// window is the least time that tells how much CPU is used of late.
const window = 500 * time.Millisecond

// target is a cgroup to be read.
type target struct {
	cgroup  string
	pid     int
	started time.Time
}

// read reads cgroups, or takes what was read of them within the last second.
// The cgroup of one that has ended meanwhile is missing in what it returns, and
// so is one that could not be read: it makes none of the others fail. s.mu is
// held.
func (s *Service) read(ctx context.Context, targets []target, parts stats.Parts) map[string]*reading {
	now := time.Now()
	found := make(map[string]*reading, len(targets))
	var wanted []target
	for _, t := range targets {
		old := s.seen[t.cgroup]
		if old == nil || old.parts&parts != parts || now.Sub(old.Time) >= fresh {
			wanted = append(wanted, t)
			continue
		}
		again := *old
		again.cached = true
		found[t.cgroup] = &again
	}
	usages, failures := s.passes(wanted, parts)
	for i, t := range wanted {
		switch err := failures[i]; {
		case err == nil:
			r := &reading{Usage: usages[i], parts: parts}
			r.watch(s.seen[t.cgroup], t.started)
			s.seen[t.cgroup], found[t.cgroup] = r, r
		case errs.KindOf(err) == errs.NotFound:
			delete(s.seen, t.cgroup)
		default:
			s.Log.WarnContext(ctx, "what a container uses is not known", "cgroup", t.cgroup, "err", err)
		}
	}
	s.forget(now)
	return found
}

// worthTwo is from how many cgroups on two goroutines read them: it is the
// kernel's work, which two processors do in half the time.
const worthTwo = 16

func (s *Service) passes(targets []target, parts stats.Parts) ([]stats.Usage, []error) {
	usages, failures := make([]stats.Usage, len(targets)), make([]error, len(targets))
	pass := func(from, to int) {
		p := s.Meter.Begin()
		defer p.End()
		for i := from; i < to; i++ {
			usages[i], failures[i] = p.Read(targets[i].cgroup, targets[i].pid, parts)
		}
	}
	half := len(targets)
	var other sync.WaitGroup
	if half >= worthTwo {
		half /= 2
		other.Go(func() { pass(half, len(targets)) })
	}
	pass(0, half)
	other.Wait()
	return usages, failures
}

// watch finds out how much CPU is used of late: since it was last looked at or,
// the first time, since it was started.
func (r *reading) watch(old *reading, started time.Time) {
	r.before = point{at: started}
	if old != nil {
		r.before = old.before
		if r.Time.Sub(old.Time) >= window {
			r.before = point{old.Time, old.CPU.Total}
		}
	}
	if over := r.Time.Sub(r.before.at); !r.before.at.IsZero() && over > 0 && r.CPU.Total >= r.before.used {
		r.rate = uint64(float64(r.CPU.Total-r.before.used) / over.Seconds())
	}
}

// remembered is how long the last reading of a cgroup is of any use.
const remembered = 5 * time.Minute

// forget lets go of what is of no use any more, and, once twice as much is
// known as when it looked last, of pods and containers that are gone. s.mu is
// held.
func (s *Service) forget(now time.Time) {
	for cgroup, r := range s.seen {
		if now.Sub(r.Time) > remembered {
			delete(s.seen, cgroup)
		}
	}
	for id, t := range s.nets {
		if now.Sub(t.at) > remembered {
			delete(s.nets, id)
		}
	}
	if len(s.seen)+len(s.nets) < s.crowd {
		return
	}
	there := map[string]bool{}
	for _, p := range s.Pods.Pods() {
		there[p.ID], there[parent(p)] = true, true
	}
	for _, c := range s.Pods.Containers() {
		there[c.Cgroup] = true
	}
	maps.DeleteFunc(s.seen, func(cgroup string, _ *reading) bool { return !there[cgroup] })
	maps.DeleteFunc(s.nets, func(id string, _ traffic) bool { return !there[id] })
	s.crowd = fewKnown + 2*(len(s.seen)+len(s.nets))
}

// fewKnown are so few readings that it does not matter whose they are.
const fewKnown = 64

// targetsOf are the cgroups of containers that run.
func targetsOf(containers []spec.PodContainer) []target {
	targets := make([]target, 0, len(containers))
	for _, c := range containers {
		if runs(c) && c.Cgroup != "" {
			targets = append(targets, target{c.Cgroup, c.Pid, c.Started})
		}
	}
	return targets
}

// traffic is what went over the interfaces of a pod.
type traffic struct {
	at         time.Time
	cached     bool
	interfaces []spec.InterfaceStats // the pod's first one first
}

// traffic reads the interfaces of a pod; none on the host's network. s.mu is
// held.
func (s *Service) traffic(p spec.Pod, containers []spec.PodContainer) (traffic, bool) {
	if p.NetNS == "" {
		return traffic{}, false
	}
	now := time.Now()
	if old, ok := s.nets[p.ID]; ok && now.Sub(old.at) < fresh {
		old.cached = true
		return old, true
	}
	pid := 0
	for _, c := range containers {
		if c.State == spec.Running && c.Pid != 0 {
			pid = c.Pid
		}
	}
	list, err := s.Meter.Traffic(pid, p.NetNS)
	if err != nil && pid > 0 { // it has just ended
		list, err = s.Meter.Traffic(0, p.NetNS)
	}
	if err != nil {
		return traffic{}, false // so has the pod
	}
	usual := "eth0"
	if len(p.Networks) > 0 {
		usual = p.Networks[0].Name
	}
	if i := slices.IndexFunc(list, func(n spec.InterfaceStats) bool { return n.Name == usual }); i > 0 {
		list[0], list[i] = list[i], list[0]
	}
	for i := range list { // the kernel takes any bytes for a name, a message does not
		list[i].Name = strings.ToValidUTF8(list[i].Name, "?")
	}
	t := traffic{at: now, interfaces: list}
	s.nets[p.ID] = t
	return t, true
}

// disk is the file system that containers write to.
type disk struct {
	stats.FileSystem
	at time.Time
}

// look reads how full it is. s.mu is held.
func (s *Service) look() (disk, error) {
	now := time.Now()
	if now.Sub(s.disk.at) < fresh {
		return s.disk, nil
	}
	fs, err := s.Meter.FileSystem(s.Root)
	if err != nil {
		return disk{}, err
	}
	s.disk = disk{fs, now}
	return s.disk, nil
}
