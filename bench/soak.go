package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// gauge is what must not grow while pods come and go.
type gauge struct {
	name  string
	value int64
	// slack is what it may be above the first reading with no harm done.
	slack int64
}

// measureSoak has pods come and go for long, and fails if anything grows.
// Only when asked for by its name.
func (b *bench) measureSoak(ctx context.Context) (err error) {
	if b.rows.String() == "" || !b.wants("soak") {
		return nil
	}
	c, err := b.berthPods(ctx, ownColumn, "")
	if c != nil {
		defer func() { c.close(context.WithoutCancel(ctx)) }()
	}
	if err != nil {
		return err
	}
	const stay, atOnce = 20, 5
	if _, _, _, err := c.many(ctx, stay, atOnce); err != nil {
		return err
	}
	// What a node remembers of late has a bound, which has to be reached first:
	// 4096 events, eight of them of each pod.
	first, err := b.calmGauges(ctx, c, 600, atOnce)
	if err != nil {
		return err
	}
	b.log.InfoContext(ctx, "soak", "for", b.soak.String(), "pods that stay", stay, "at once", atOnce)
	b.report(ctx, "begins", first, nil)
	until := time.Now().Add(b.soak)
	for time.Now().Before(until) {
		part := min(b.soak/10+time.Second, time.Until(until)+time.Millisecond)
		n, err := c.churn(ctx, part, atOnce)
		if err != nil {
			return err
		}
		now, err := c.gauges(ctx)
		if err != nil {
			return err
		}
		b.report(ctx, fmt.Sprintf("%d pods more, %.1f /s", n, float64(n)/part.Seconds()), now, first)
	}
	last, err := b.calmGauges(ctx, c, 0, atOnce)
	if err != nil {
		return err
	}
	b.report(ctx, "ends", last, first)
	if _, err := c.running(ctx, stay); err != nil {
		return err
	}
	var grown error
	for i, g := range last {
		b.results.add("soak-"+g.name, ourColumn, float64(first[i].value), float64(g.value))
		if g.value > first[i].value+g.slack {
			grown = errors.Join(grown, fmt.Errorf("%s grew from %d to %d", g.name, first[i].value, g.value))
		}
	}
	return grown
}

// calmGauges churns n pods, lets what goes on in the background end, and
// reads.
func (b *bench) calmGauges(ctx context.Context, c *cluster, n, atOnce int) ([]gauge, error) {
	err := each(n, atOnce, func(int) error { return c.cycle(ctx) })
	if err == nil {
		err = pause(ctx, 10*time.Second)
	}
	if err != nil {
		return nil, err
	}
	return c.gauges(ctx)
}

// churn has pods come and go for a while.
func (c *cluster) churn(ctx context.Context, d time.Duration, atOnce int) (int64, error) {
	until := time.Now().Add(d)
	var n atomic.Int64
	err := each(atOnce, atOnce, func(int) error {
		for time.Now().Before(until) {
			if err := c.cycle(ctx); err != nil {
				return err
			}
			n.Add(1)
		}
		return nil
	})
	c.taken("", "", results{})
	return n.Load(), err
}

// cycle is the life of a pod, with what kubelet asks meanwhile.
func (c *cluster) cycle(ctx context.Context) error {
	w, err := c.up(ctx)
	if err != nil {
		return err
	}
	err = c.exec(ctx, w, "/bin/sh", "-c", "echo hello; echo there > /file")
	if err == nil {
		err = c.calls(ctx, w)
	}
	if err == nil {
		_, err = c.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: w.container})
	}
	if err := errors.Join(err, c.down(ctx, w)); err != nil {
		return err
	}
	return nil
}

// gauges reads all.
func (c *cluster) gauges(ctx context.Context) ([]gauge, error) {
	keeper := c.helpers()[0]
	daemonPSS, keeperPSS, err := c.memory()
	if err != nil {
		return nil, err
	}
	routines, heap, err := c.ofGo(ctx)
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(c.state()))
	links, err := os.ReadDir("/sys/class/net/berth-" + hex.EncodeToString(sum[:4]) + "/brif")
	if err != nil {
		return nil, err
	}
	place := filepath.Dir(c.socket)
	return []gauge{
		{"node KiB", daemonPSS >> 10, 16 << 10},
		{"keeper KiB", keeperPSS >> 10, 2 << 10},
		{"node descriptors", entries(c.pid(), "fd"), 8},
		{"keeper descriptors", entries(keeper, "fd"), 4},
		{"node threads", entries(c.pid(), "task"), 16},
		{"keeper threads", entries(keeper, "task"), 8},
		{"goroutines", routines, 10},
		{"node's live heap KiB", heap >> 10, 4 << 10},
		{"mounts", int64(strings.Count(string(mounts), place)), 0},
		{"links", int64(len(links)), 0},
		{"cgroups", files(c.group.dirs[0], fs.FileMode.IsDir), 0},
		{"files of state", files(c.state(), every), 8},
		{"files of root", files(c.root(), every), 32},
	}, nil
}

// state and root are the node's folders, by its arguments.
func (c *cluster) state() string { return c.argument("--state") }
func (c *cluster) root() string  { return c.argument("--root") }

func (c *cluster) argument(name string) string {
	return c.argv[slices.Index(c.argv, name)+1]
}

func entries(pid int, kind string) int64 {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, kind))
	return int64(len(list))
}

func every(fs.FileMode) bool { return true }

// files counts those below a folder, without following into what is mounted.
func files(dir string, is func(fs.FileMode) bool) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && is(d.Type()) {
			n++
		}
		if err == nil && d.IsDir() && d.Name() == "rootfs" {
			return fs.SkipDir
		}
		return nil // what goes while it is counted is gone
	})
	return n
}

// ofGo asks the node's metrics for its goroutines, and for the bytes that
// were in use when its collector had run last: it runs again at twice of them.
func (c *cluster) ofGo(ctx context.Context) (routines, heap int64, err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berth/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	r, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer r.Body.Close()
	found := map[string]float64{}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			found[name] = n
		}
	}
	if found["go_goroutines"] == 0 || found["go_memstats_next_gc_bytes"] == 0 {
		return 0, 0, errors.Join(lines.Err(), errors.New("the node's metrics say nothing of Go"))
	}
	return int64(found["go_goroutines"]), int64(found["go_memstats_next_gc_bytes"] / 2), nil
}

// report logs readings, with what each is above the first.
func (b *bench) report(ctx context.Context, what string, now, first []gauge) {
	var args []string
	for i, g := range now {
		text := fmt.Sprintf("%s %d", g.name, g.value)
		if first != nil && g.value != first[i].value {
			text += fmt.Sprintf(" (%+d)", g.value-first[i].value)
		}
		args = append(args, text)
	}
	b.log.InfoContext(ctx, "soaking", "when", what, "readings", strings.Join(args, ", "))
}
