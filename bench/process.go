package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// daemon is a long-running program that is started, killed and started again.
type daemon struct {
	argv []string
	env  []string
	log  string

	cmd     *exec.Cmd
	ended   chan error
	exit    error          // how it ended
	waiting sync.WaitGroup // for cmd; kill and stop wait until it is over
}

func (d *daemon) start() error {
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := &exec.Cmd{Path: d.argv[0], Args: d.argv, Env: append(os.Environ(), d.env...), Stdout: log, Stderr: log}
	// A process group of its own: an interrupt at the terminal is for the
	// bench, which then ends its daemons in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.argv[0], err)
	}
	d.cmd, d.ended = cmd, make(chan error, 1)
	ended := d.ended
	d.waiting.Go(func() { ended <- cmd.Wait() })
	return nil
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// kill ends the daemon with no chance to tidy up.
func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	d.exit = <-d.ended
	d.cmd = nil
}

// stop asks the daemon to end, and kills it if it does not within ten seconds.
func (d *daemon) stop(ctx context.Context) {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	patience, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	select {
	case d.exit = <-d.ended:
		d.cmd = nil
	case <-patience.Done():
		d.kill()
	}
}

// poll tries do every millisecond until it succeeds, the daemon has ended or
// two minutes are over.
func (d *daemon) poll(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w); see %s", what, ctx.Err(), err, d.log)
		case ended := <-d.ended:
			d.cmd = nil
			return fmt.Errorf("wait for %s: it has ended: %w\n%s", what, ended, tail(d.log))
		case <-tick.C:
		}
	}
}

func tail(path string) string {
	data, _ := os.ReadFile(path)
	return string(data[max(0, len(data)-2000):])
}

// output runs a program to its end and returns what it printed.
func output(ctx context.Context, env []string, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// pss is the proportional share of memory of the processes, in bytes.
func pss(pids ...int) (total int64, err error) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
				kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				if err != nil {
					return 0, err
				}
				total += kib << 10
			}
		}
	}
	return total, nil
}

// cpu is the time that the processes have run, to the nanosecond; the time of
// their ended children, where they reaped any, to the tick of 10 ms.
func cpu(pids ...int) (total time.Duration, err error) {
	for _, pid := range pids {
		var ts unix.Timespec
		const scheduled = 2
		if err := unix.ClockGettime(^int32(pid)<<3|scheduled, &ts); err != nil {
			return 0, fmt.Errorf("clock of process %d: %w", pid, err)
		}
		total += time.Duration(ts.Nano())
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 15 {
			return 0, errors.New("short /proc/pid/stat")
		}
		for _, field := range fields[13:15] {
			ticks, _ := strconv.ParseInt(field, 10, 64)
			total += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return total, nil
}

// processes finds those whose program is the file of that name and whose
// arguments have all the words.
func processes(program string, words ...string) (pids []int) {
	entries, _ := filepath.Glob("/proc/[0-9]*")
next:
	for _, dir := range entries {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || filepath.Base(exe) != program {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		for _, word := range words {
			if !bytes.Contains(line, []byte(word)) {
				continue next
			}
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		pids = append(pids, pid)
	}
	return pids
}

// endTree kills a process and all below it.
func endTree(pid int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var children []int
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(text)) {
			child, _ := strconv.Atoi(field)
			children = append(children, child)
		}
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	for _, child := range children {
		endTree(child)
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
