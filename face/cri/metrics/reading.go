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
	set    settings
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
	asked   limits
}

// limits are those that a client asked for.
type limits struct{ shares, quota, period, memory, swap int64 }

func limitsOf(r *spec.PodResources) limits {
	if r == nil {
		return limits{}
	}
	return limits{r.CPUShares, r.CPUQuota, r.CPUPeriod, r.Memory, r.MemorySwap}
}

// settings says when it was read what is set for a cgroup, for which parts, and
// what had been asked for then.
type settings struct {
	at    time.Time
	parts stats.Parts
	asked limits
}

// setForAWhile is how long it is taken for granted that nobody has set a limit
// by hand. A third of the files of a cgroup say what is set.
const setForAWhile = time.Minute

// tell says whether they are still good, for these parts.
func (s settings) tell(parts stats.Parts, asked limits, now time.Time) bool {
	parts &= stats.Basic | stats.Finer
	return s.parts&parts == parts && s.asked == asked && now.Sub(s.at) < setForAWhile
}

// read reads cgroups, or takes what was read of them within the last second.
// The cgroup of one that has ended meanwhile is missing in what it returns, and
// so is one that could not be read: it makes none of the others fail. s.mu is
// held.
func (s *Service) read(ctx context.Context, targets []target, parts stats.Parts) map[string]*reading {
	now := time.Now()
	found := make(map[string]*reading, len(targets))
	wanted := make([]wish, 0, len(targets))
	for _, t := range targets {
		old := s.seen[t.cgroup]
		switch {
		case old == nil:
			wanted = append(wanted, wish{target: t, old: &reading{}, parts: parts | stats.Settings})
		case old.parts&parts == parts && now.Sub(old.Time) < fresh:
			again := *old
			again.cached = true
			found[t.cgroup] = &again
		case old.set.tell(parts, t.asked, now):
			wanted = append(wanted, wish{target: t, old: old, parts: parts})
		default:
			wanted = append(wanted, wish{target: t, old: old, parts: parts | stats.Settings})
		}
	}
	s.fulfil(wanted)
	for i := range wanted {
		w := &wanted[i]
		switch {
		case w.err == nil:
			r := &reading{Usage: w.usage, parts: parts, set: settings{now, parts, w.asked}}
			if w.parts&stats.Settings == 0 {
				r.set = w.old.set
				r.Set(&w.old.Usage)
			}
			r.watch(w.old, w.started)
			s.seen[w.cgroup], found[w.cgroup] = r, r
		case errs.KindOf(w.err) == errs.NotFound:
			delete(s.seen, w.cgroup)
		default:
			s.Log.WarnContext(ctx, "what a container uses is not known", "cgroup", w.cgroup, "err", w.err)
		}
	}
	s.forget(now)
	return found
}

// wish is a cgroup that is to be read, and what was read.
type wish struct {
	target
	old   *reading // nothing at all the first time
	parts stats.Parts
	usage stats.Usage
	err   error
}

func (s *Service) fulfil(wanted []wish) {
	inHalves(len(wanted), func(from, to int) {
		p := s.Meter.Begin()
		defer p.End()
		for i := from; i < to; i++ {
			w := &wanted[i]
			w.usage, w.err = p.Read(w.cgroup, w.pid, w.parts)
		}
	})
}

// worthTwo is from how many on two goroutines do what is to be done of each: it
// is the kernel's work for the most part, which two processors do in half the
// time.
const worthTwo = 16

// inHalves has do called for all of n, or at the same time for the first half of
// them and for the other.
func inHalves(n int, do func(from, to int)) {
	half := n
	var other sync.WaitGroup
	if n >= worthTwo {
		half = n / 2
		other.Go(func() { do(half, n) })
	}
	do(0, half)
	other.Wait()
}

// watch finds out how much CPU is used of late: since it was last looked at or,
// the first time, since it was started.
func (r *reading) watch(old *reading, started time.Time) {
	r.before = point{at: started}
	if !old.Time.IsZero() {
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
			targets = append(targets, target{c.Cgroup, c.Pid, c.Started, limitsOf(&c.Resources)})
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

// traffics reads the interfaces of pods, by their ids. One on the host's network
// is missing, and one that has just ended. s.mu is held.
func (s *Service) traffics(all []household) map[string]traffic {
	now := time.Now()
	found := make([]traffic, len(all))
	inHalves(len(all), func(from, to int) {
		for i := from; i < to; i++ {
			if old, ok := s.nets[all[i].pod.ID]; ok && now.Sub(old.at) < fresh {
				found[i] = old
				found[i].cached = true
			} else if list := s.interfaces(all[i]); list != nil {
				found[i] = traffic{at: now, interfaces: list}
			}
		}
	})
	of := make(map[string]traffic, len(all))
	for i, t := range found {
		id := all[i].pod.ID
		if t.at.IsZero() {
			continue
		}
		if of[id] = t; !t.cached {
			s.nets[id] = t
		}
	}
	return of
}

// interfaces are those of a pod, its own first one first; nil where it has none.
func (s *Service) interfaces(h household) []spec.InterfaceStats {
	if h.pod.NetNS == "" {
		return nil
	}
	pid := 0
	for _, c := range h.containers {
		if c.State == spec.Running && c.Pid != 0 {
			pid = c.Pid
		}
	}
	list, err := s.Meter.Traffic(pid, h.pod.NetNS)
	if err != nil && pid > 0 { // it has just ended
		list, err = s.Meter.Traffic(0, h.pod.NetNS)
	}
	if err != nil {
		return nil // so has the pod
	}
	usual := "eth0"
	if len(h.pod.Networks) > 0 {
		usual = h.pod.Networks[0].Name
	}
	if i := slices.IndexFunc(list, func(n spec.InterfaceStats) bool { return n.Name == usual }); i > 0 {
		list[0], list[i] = list[i], list[0]
	}
	for i := range list { // the kernel takes any bytes for a name, a message does not
		list[i].Name = strings.ToValidUTF8(list[i].Name, "?")
	}
	return list
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
