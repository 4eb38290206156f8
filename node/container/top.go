package container

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// Top lists the processes of a running container, as ps -ef would; with
// psArgs it asks the host's ps(1).
func (s *Set) Top(ctx context.Context, ref string, psArgs []string) (spec.ProcessTable, error) {
	c, err := s.find(ref)
	if err != nil {
		return spec.ProcessTable{}, err
	}
	view := c.get()
	if !alive(view.State.Status) {
		return spec.ProcessTable{}, running(view)
	}
	pids, err := s.pids(ctx, view)
	if err != nil {
		return spec.ProcessTable{}, fmt.Errorf("processes of container %s: %w", view.Name, err)
	}
	s.publish(view, "top")
	if len(psArgs) > 0 {
		return hostPs(ctx, pids, psArgs)
	}
	return processTable(pids), nil
}

func (s *Set) pids(ctx context.Context, c *spec.Container) ([]int, error) {
	r, err := s.runtime(c)
	if err != nil {
		return nil, err
	}
	return r.Pids(ctx, keyOf(c))
}

// processTable reads /proc. A process that ends meanwhile is left out.
func processTable(pids []int) spec.ProcessTable {
	table := spec.ProcessTable{
		Titles:    []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"},
		Processes: [][]string{},
	}
	boot := bootTime()
	for _, pid := range slices.Sorted(slices.Values(pids)) {
		if row := processRow(pid, boot); row != nil {
			table.Processes = append(table.Processes, row)
		}
	}
	return table
}

// ticks a second, as the kernel tells every program.
const ticks = 100

func processRow(pid int, boot time.Time) []string {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return nil
	}
	var owner unix.Stat_t
	if unix.Stat(dir, &owner) != nil {
		return nil
	}
	// The name in brackets may hold anything, brackets too.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return nil
	}
	name, fields := string(stat[open+1:end]), strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return nil
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(fields[i], 10, 64); return n }
	cpu := time.Duration(number(11)+number(12)) * time.Second / ticks
	started := boot.Add(time.Duration(number(19)) * time.Second / ticks)
	return []string{
		userName(owner.Uid), strconv.Itoa(pid), fields[1], share(cpu, time.Since(started)),
		startedAt(started), ttyName(number(4)), clockTime(cpu), commandLine(dir, name),
	}
}

func bootTime() time.Time {
	var since unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &since) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(since.Nano()))
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func share(cpu, of time.Duration) string {
	if of <= 0 {
		return "0"
	}
	return strconv.FormatInt(int64(100*cpu/of), 10)
}

func startedAt(t time.Time) string {
	t = t.Local()
	if time.Since(t) < 24*time.Hour {
		return t.Format("15:04")
	}
	return t.Format("Jan02")
}

func clockTime(d time.Duration) string {
	return fmt.Sprintf("%02d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

// ttyName names a terminal by its device number.
func ttyName(device int64) string {
	major, minor := unix.Major(uint64(device)), unix.Minor(uint64(device))
	switch {
	case device == 0:
		return "?"
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)*256+minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	}
	return fmt.Sprintf("%d:%d", major, minor)
}

func commandLine(dir, name string) string {
	line, err := os.ReadFile(dir + "cmdline")
	if err != nil || len(line) == 0 {
		return "[" + name + "]"
	}
	return strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")
}

// hostPs runs ps and keeps the lines of the container. ps is told which
// processes are asked for, since by itself it shows only those of a terminal;
// where args tell it that, too, it may not take both.
func hostPs(ctx context.Context, pids []int, args []string) (spec.ProcessTable, error) {
	list := make([]string, len(pids))
	for i, pid := range pids {
		list[i] = strconv.Itoa(pid)
	}
	output, err := exec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q", strings.Join(list, ","))...).Output()
	if err != nil {
		output, err = exec.CommandContext(ctx, "ps", args...).Output()
	}
	if err != nil {
		if failed, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as Output returns it
			return spec.ProcessTable{}, errs.New(errs.Invalid, "ps %s: %s", strings.Join(args, " "), bytes.TrimSpace(failed.Stderr))
		}
		return spec.ProcessTable{}, fmt.Errorf("ps: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	table := spec.ProcessTable{Titles: strings.Fields(lines[0]), Processes: [][]string{}}
	column := slices.Index(table.Titles, "PID")
	if column < 0 {
		return spec.ProcessTable{}, errs.New(errs.Invalid, "ps %s: its output needs a column PID", strings.Join(args, " "))
	}
	for _, line := range lines[1:] {
		fields := splitColumns(line, len(table.Titles))
		if len(fields) <= column {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			table.Processes = append(table.Processes, fields)
		}
	}
	return table, nil
}

// splitColumns splits a line into n fields; the last one takes what remains.
func splitColumns(line string, n int) []string {
	var fields []string
	rest := strings.TrimSpace(line)
	for len(fields) < n-1 && rest != "" {
		field, after, _ := strings.Cut(rest, " ")
		fields = append(fields, field)
		rest = strings.TrimLeft(after, " ")
	}
	if rest != "" {
		fields = append(fields, rest)
	}
	return fields
}
