package stats

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Detail is all that a cgroup tells, in the kernel's own words: names are those
// in its files.
type Detail struct {
	Unified bool // cgroup version 2

	// CPU is cpu.stat. Of version 1 it also has usage, user and system, all in
	// nanoseconds; PerCPU are nanoseconds too.
	CPU    Values
	PerCPU []uint64

	Memory Values           // memory.stat
	Events Values           // memory.events, or memory.oom_control of version 1
	Levels map[string]Level // memory and swap; of version 1 also kernel and tcp; swap is both together there
	Pids   Level
	Huge   map[string]Level // by size of page, such as 2MB

	IO    []Device // of version 2
	Bytes []Moved  // of version 1
	Moves []Moved  // of version 1
}

// Values are numbers by name.
type Values map[string]uint64

// Level is how much there is of something, and how much there may be;
// math.MaxUint64 where that is "max".
type Level struct{ Usage, Peak, Limit, Failures uint64 }

// Device is what a block device did.
type Device struct {
	Major, Minor uint64
	Values
}

// Moved is what a block device did of one kind: Read, Write, Sync and so on.
type Moved struct {
	Major, Minor uint64
	Kind         string
	Value        uint64
}

// Detail gives all that the cgroup tells.
func (r *Reader) Detail(cgroup string) (Detail, error) {
	d := Detail{Unified: r.unified, Levels: map[string]Level{}, Huge: map[string]Level{}}
	f := newFiles()
	if r.unified {
		r.detailV2(&d, f, cgroup)
	} else {
		r.detailV1(&d, f, cgroup)
	}
	switch {
	case f.err != nil:
		return d, f.err
	case !f.found:
		return d, errs.New(errs.NotFound, "there is no cgroup %s", cgroup)
	}
	return d, nil
}

func (r *Reader) detailV1(d *Detail, f *files, cgroup string) {
	at := f.below(r.root, "cpu", cgroup)
	d.CPU = values(at("cpu.stat"))
	at = f.below(r.root, "cpuacct", cgroup)
	usage := values(at("cpuacct.stat"))
	d.CPU["user"], d.CPU["system"] = usage["user"]*tick, usage["system"]*tick
	for one := range bytes.FieldsSeq(at("cpuacct.usage_percpu")) {
		n := level(one)
		d.CPU["usage"] += n
		if len(d.PerCPU) < r.cpus || n > 0 { // the kernel names those too that there could be
			d.PerCPU = append(d.PerCPU, n)
		}
	}

	at = f.in(filepath.Join(r.root, "memory", cgroup))
	defer f.close()
	d.Memory, d.Events = values(at("memory.stat")), values(at("memory.oom_control"))
	d.Levels["memory"], d.Levels["swap"] = levelV1(at, "memory."), levelV1(at, "memory.memsw.")
	d.Levels["kernel"] = Level{Usage: level(at("memory.kmem.usage_in_bytes")), Peak: level(at("memory.kmem.max_usage_in_bytes"))} // no limit can be set
	d.Levels["tcp"], _ = rareV1(at, "memory.kmem.tcp.")
	at = f.below(r.root, "pids", cgroup)
	d.Pids = Level{Usage: level(at("pids.current")), Limit: unbounded(at("pids.max"))}
	at = f.below(r.root, "blkio", cgroup)
	d.Bytes = moved(at("blkio.throttle.io_service_bytes_recursive"))
	d.Moves = moved(at("blkio.throttle.io_serviced_recursive"))
	at = f.below(r.root, "hugetlb", cgroup)
	for _, size := range r.pages {
		if rare, here := rareV1(at, "hugetlb."+size+"."); here {
			d.Huge[size] = rare
		}
	}
}

func levelV1(at func(string) []byte, prefix string) Level {
	return Level{
		Usage: level(at(prefix + "usage_in_bytes")), Peak: level(at(prefix + "max_usage_in_bytes")),
		Limit: level(at(prefix + "limit_in_bytes")), Failures: level(at(prefix + "failcnt")),
	}
}

// rareV1 is levelV1 for what hardly anybody uses, and without the limit: one
// file says that there has never been any.
func rareV1(at func(string) []byte, prefix string) (l Level, here bool) {
	text := at(prefix + "max_usage_in_bytes")
	if l.Peak = level(text); l.Peak == 0 {
		return l, text != nil
	}
	l.Usage, l.Failures = level(at(prefix+"usage_in_bytes")), level(at(prefix+"failcnt"))
	return l, true
}

func (r *Reader) detailV2(d *Detail, f *files, cgroup string) {
	at := f.in(filepath.Join(r.root, cgroup))
	defer f.close()
	d.CPU, d.Memory, d.Events = values(at("cpu.stat")), values(at("memory.stat")), values(at("memory.events"))
	d.Levels["memory"] = Level{Usage: level(at("memory.current")), Peak: level(at("memory.peak")), Limit: level(at("memory.max"))}
	d.Levels["swap"] = Level{Usage: level(at("memory.swap.current")), Peak: level(at("memory.swap.peak")), Limit: level(at("memory.swap.max"))}
	d.Pids = Level{Usage: level(at("pids.current")), Limit: unbounded(at("pids.max"))}
	for line := range strings.Lines(string(at("io.stat"))) {
		if device, ok := deviceOf(line); ok {
			d.IO = append(d.IO, device)
		}
	}
	for _, size := range r.pages {
		if text := at("hugetlb." + size + ".current"); text != nil {
			d.Huge[size] = Level{
				Usage: level(text), Limit: level(at("hugetlb." + size + ".max")),
				Failures: values(at("hugetlb." + size + ".events"))["max"],
			}
		}
	}
}

// below gives a reader of the few files of a folder that are wanted.
func (f *files) below(root, controller, cgroup string) func(name string) []byte {
	dir := root + "/" + controller + "/" + cgroup + "/"
	return func(name string) []byte { return f.read(dir + name) }
}

// in gives a reader of the files of one folder, which is held open until the
// next: that is faster than their whole paths where there are many.
func (f *files) in(dir string) func(name string) []byte {
	f.close()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if !absent(err) {
			f.err = &os.PathError{Op: "open", Path: dir, Err: err}
		}
		return func(string) []byte { return nil }
	}
	f.dir = fd
	return func(name string) []byte { return f.readAt(fd, name) }
}

func (f *files) close() {
	if f.dir > 0 {
		_ = unix.Close(f.dir)
		f.dir = 0
	}
}

// values reads lines of a name and a number.
func values(text []byte) Values {
	v := make(Values, 48)
	for line := range bytes.Lines(text) {
		name, number, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if n, err := strconv.ParseUint(string(number), 10, 64); err == nil {
			v[string(name)] = n
		}
	}
	return v
}

// level reads the file's only number, as it stands.
func level(text []byte) uint64 {
	text = bytes.TrimSpace(text)
	if string(text) == "max" {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// unbounded is level for what has 0 where there is no limit.
func unbounded(text []byte) uint64 {
	if n := level(text); n != math.MaxUint64 {
		return n
	}
	return 0
}

// moved reads lines such as "8:0 Read 4096".
func moved(text []byte) []Moved {
	var all []Moved
	for line := range strings.Lines(string(text)) {
		parts := strings.Fields(line)
		if len(parts) != 3 {
			continue // the sum of all
		}
		major, minor, ok := number2(parts[0])
		value, err := strconv.ParseUint(parts[2], 10, 64)
		if ok && err == nil {
			all = append(all, Moved{major, minor, parts[1], value})
		}
	}
	return all
}

// deviceOf reads a line such as "8:0 rbytes=1 wbytes=2".
func deviceOf(line string) (Device, bool) {
	parts := strings.Fields(line)
	if len(parts) == 0 {
		return Device{}, false
	}
	d := Device{Values: Values{}}
	var ok bool
	d.Major, d.Minor, ok = number2(parts[0])
	for _, entry := range parts[1:] {
		name, value, _ := strings.Cut(entry, "=")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			d.Values[name] = n
		}
	}
	return d, ok
}

// number2 reads "8:0".
func number2(text string) (major, minor uint64, ok bool) {
	a, b, _ := strings.Cut(text, ":")
	major, err := strconv.ParseUint(a, 10, 32)
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.ParseUint(b, 10, 32)
	return major, minor, err == nil
}

// hugePages are the sizes of huge pages as cgroups name them.
func hugePages() []string {
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		kb, ok := strings.CutPrefix(e.Name(), "hugepages-")
		n, err := strconv.ParseUint(strings.TrimSuffix(kb, "kB"), 10, 64)
		if !ok || err != nil {
			continue
		}
		unit := "KB"
		for _, larger := range []string{"MB", "GB"} {
			if n >= 1024 {
				n, unit = n/1024, larger
			}
		}
		sizes = append(sizes, strconv.FormatUint(n, 10)+unit)
	}
	return sizes
}
