package stats

import (
	"bytes"
	"path/filepath"
	"strconv"
)

// Pressure is how long tasks waited for a resource: some of them, or all.
type Pressure struct{ Some, Full Wait }

// Wait is shares of time in percent, over the last so many seconds, and in
// Total nanoseconds.
type Wait struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// pressure is kept in the unified hierarchy, which machines of version 1 often
// have besides the others.
func (p *Pass) pressure(u *Usage, cgroup string) {
	if p.r.pressures == "" {
		return
	}
	at := p.f.in(filepath.Join(p.r.pressures, cgroup))
	defer p.f.close()
	u.Pressure.CPU, u.Pressure.Memory, u.Pressure.IO = pressure(at("cpu.pressure")), pressure(at("memory.pressure")), pressure(at("io.pressure"))
}

// Pressure tells whether the kernel keeps the pressure of cgroups.
func (r *Reader) Pressure() bool { return r.pressures != "" }

// HugePages are the sizes of the kernel's, such as 2MB.
func (r *Reader) HugePages() []string { return r.pages }

// Unified tells whether cgroups are those of version 2.
func (r *Reader) Unified() bool { return r.unified }

// findPressures is the hierarchy that keeps pressure, or "".
func findPressures(root string, unified bool) string {
	if !unified {
		root = filepath.Join(root, "unified")
	}
	// Where the kernel was told to keep none, the files are there and say so.
	f := newFiles()
	if f.read(filepath.Join(root, "cpu.pressure")) == nil {
		return ""
	}
	return root
}

// pressure reads lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=12",
// whose total is in microseconds. nil: there are none.
func pressure(text []byte) *Pressure {
	if text == nil {
		return nil
	}
	var p Pressure
	for line := range bytes.Lines(text) {
		wait := &p.Some
		if bytes.HasPrefix(line, []byte("full ")) {
			wait = &p.Full
		}
		for entry := range bytes.FieldsSeq(line) {
			name, value, _ := bytes.Cut(entry, []byte("="))
			switch string(name) {
			case "avg10":
				wait.Avg10 = share(value)
			case "avg60":
				wait.Avg60 = share(value)
			case "avg300":
				wait.Avg300 = share(value)
			case "total":
				wait.Total = number(value) * 1000
			}
		}
	}
	return &p
}

func share(text []byte) float64 {
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil || f < 0 || f > 100 {
		return 0
	}
	return f
}
