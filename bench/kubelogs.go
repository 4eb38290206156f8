package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// podLogs has a container say as much as it can, and counts the lines in its
// log: how fast it was let say them, and how much memory that took.
func (b *bench) podLogs(ctx context.Context, c *cluster) error {
	const lines, width, times = 160_000, 100, 32 // the same lines so many times
	const digits = 6
	say := fmt.Sprintf("seq -s '%s\n' %d %d > /lines; sleep 2; i=0; while [ $i -lt %d ]; do cat /lines; i=$((i+1)); done; exec sleep 1000000",
		strings.Repeat("x", width-digits-1), 100_001, 100_000+lines, times)
	w, err := c.runs(ctx, "/bin/sh", "-c", say)
	if err != nil {
		return err
	}
	spent, err := c.group.cpu()
	if err != nil {
		return err
	}
	took, grown, err := c.said(ctx, w.log)
	if err != nil {
		return err
	}
	after, err := c.group.cpu()
	if err != nil {
		return err
	}
	found, err := countLines(w.log)
	if err != nil {
		return err
	}
	if found != lines*times {
		return fmt.Errorf("%d of %d lines are in the log", found, lines*times)
	}
	const megabytes = float64(lines) * width * times / 1e6
	b.results.add("cri-log", c.column, megabytes/took.Seconds())
	b.results.add("cri-log-cpu", c.column, milliseconds(after-spent)/megabytes)
	b.results.add("cri-log-memory", c.column, float64(grown)/(1<<20))
	err = errors.Join(os.Remove(w.log), c.down(ctx, w))
	c.taken("", "", results{})
	return err
}

// said waits until a log does not grow any more, and tells for how long it
// grew, and by how much the daemon and what is beside it did.
func (c *cluster) said(ctx context.Context, log string) (took time.Duration, grown int64, err error) {
	const look, calm = 20 * time.Millisecond, 2 * time.Second
	daemon, helpers, err := c.memory()
	if err != nil {
		return 0, 0, err
	}
	before, size := daemon+helpers, int64(0)
	var began, last time.Time
	for n := 0; last.IsZero() || time.Since(last) < calm; n++ {
		if err := pause(ctx, look); err != nil {
			return 0, 0, err
		}
		now, err := sizeOf(log)
		if err != nil {
			return 0, 0, err
		}
		if now > size {
			last = time.Now()
		}
		if size == 0 {
			began = time.Now().Add(-look)
		}
		size = now
		if n%5 > 0 {
			continue
		}
		if daemon, helpers, err = c.memory(); err != nil {
			return 0, 0, err
		}
		grown = max(grown, daemon+helpers-before)
	}
	return last.Sub(began), grown, nil
}

func sizeOf(file string) (int64, error) {
	info, err := os.Stat(file)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// countLines counts the records of a log that end a line.
func countLines(file string) (n int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	records := bufio.NewScanner(f)
	records.Buffer(make([]byte, 1<<16), 1<<20)
	for records.Scan() {
		if bytes.Contains(records.Bytes()[:min(60, len(records.Bytes()))], []byte(" stdout F ")) {
			n++
		}
	}
	return n, records.Err()
}
