package stats

import (
	"time"

	"berth/base/errs"
)

// Parts says what of a Usage is wanted; each costs some files.
type Parts uint

// The parts of a Usage. What has a part's name in Usage comes with it.
const (
	Basic     Parts = 1 << iota // CPU.Total, Memory but for what Finer names
	Finer                       // the rest of CPU and Memory, Tasks and Limits
	Pressures                   // Pressure
	Disks                       // IO
	Pages                       // Huge
	Count                       // Processes.Count
	Insides                     // the rest of Processes
	Settings                    // what is not used but set: limits and shares, of what Basic and Finer name
)

// Usage is what a cgroup and all below it use, as far as it was asked for. A
// number that the kernel does not keep is 0. Times are nanoseconds, sizes
// bytes, and a limit of 0 is none.
type Usage struct {
	Time time.Time

	CPU struct {
		Total, User, System   uint64
		Periods, Throttled    uint64 // of the quota
		ThrottledTime         uint64
		Shares, Quota, Period uint64
	}
	Memory struct {
		Usage, WorkingSet, RSS, Cache, Mapped, Swap, Limit uint64
		Faults, MajorFaults                                uint64
		// OwnFaults are those of the cgroup without those below it; version 2
		// does not tell them apart.
		OwnFaults, OwnMajorFaults uint64

		Kernel, Peak, Failures, OOMKills uint64 // Finer
		// SwapLimit is of memory and swap together on version 1. On version 2 it
		// can be 0 and a limit: SwapLimited.
		SwapLimit, Reservation uint64
		SwapLimited            bool
	}
	Tasks    Level // threads
	Pressure struct {
		CPU, Memory, IO *Pressure // nil where the kernel has none
	}
	IO        []DeviceUsage
	Huge      []PageUsage
	Processes struct {
		Count, Files, Sockets uint64
		// FilesLimit is the soft one of the process that was named.
		FilesLimit uint64
		States     States
	}
}

// PageUsage is what there is of huge pages of a size, such as 2MB.
type PageUsage struct {
	Size        string
	Usage, Peak uint64
}

// Pass reads many cgroups one after the other. What is dear to count in it is
// bounded over all of them.
type Pass struct {
	r *Reader
	f *files
	// links is how many descriptors may still be looked at.
	links int
	pids  []int
	paged map[string]bool // whether huge pages were ever used, by file
}

// linksEach is how many descriptors one pass looks at.
const linksEach = 4096

// Begin begins a pass. It must end, and be used by one goroutine.
func (r *Reader) Begin() *Pass { return &Pass{r: r, f: r.take(), links: linksEach} }

// take is a buffer to read into; it goes back into buffers.
func (p *passes) take() *files {
	f, _ := p.buffers.Get().(*files)
	if f == nil {
		f = newFiles()
	}
	f.found, f.err = false, nil
	return f
}

// End ends the pass.
func (p *Pass) End() {
	p.f.close()
	p.r.buffers.Put(p.f)
	p.f = nil
}

// Set takes what Settings names from an earlier Usage of the same cgroup.
func (u *Usage) Set(old *Usage) {
	u.CPU.Shares, u.CPU.Quota, u.CPU.Period = old.CPU.Shares, old.CPU.Quota, old.CPU.Period
	u.Memory.Limit, u.Memory.Reservation = old.Memory.Limit, old.Memory.Reservation
	u.Memory.SwapLimit, u.Memory.SwapLimited = old.Memory.SwapLimit, old.Memory.SwapLimited
	u.Tasks.Limit = old.Tasks.Limit
}

// Read tells what a cgroup uses, of which pid is a process; 0 if none is known.
// errs.NotFound: there is no such cgroup.
func (p *Pass) Read(cgroup string, pid int, want Parts) (Usage, error) {
	p.f.found, p.f.err = false, nil
	u := Usage{Time: time.Now()}
	if p.r.unified {
		p.usageV2(&u, cgroup, want)
	} else {
		p.usageV1(&u, cgroup, want)
	}
	p.f.close()
	if want&Pressures != 0 {
		p.pressure(&u, cgroup)
	}
	if want&(Count|Insides) != 0 {
		p.processes(&u, cgroup, pid, want)
	}
	switch {
	case p.f.err != nil:
		return u, p.f.err
	case !p.f.found:
		return u, errs.New(errs.NotFound, "there is no cgroup %s", cgroup)
	}
	return u, nil
}
