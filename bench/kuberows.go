package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// podsListed are how many pods there are when the runtime is killed, and when
// all are listed.
const (
	podsRestarted = 100
	podsListed    = 200
)

// podPart is measured again in each round, on each side.
type podPart struct {
	name    string
	measure func(ctx context.Context, c *cluster) error
}

// measurePods has kubelet's calls asked of containerd, of a node with the
// same CNI plugins and of one with its own network.
func (b *bench) measurePods(ctx context.Context) (err error) {
	parts := []podPart{
		{"cri-start", b.podsOneByOne}, {"cri-fifty", b.podsAtOnce}, {"cri-event", b.podEvents}, {"cri-log", b.podLogs},
	}
	parts = slices.DeleteFunc(parts, func(p podPart) bool { return !b.wants(p.name) })
	if len(parts) == 0 && !b.wants("cri-idle") && !b.wants("cri-many") {
		return nil
	}
	var clusters []*cluster
	defer func() {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		for _, c := range clusters {
			c.close(within)
		}
	}()
	for _, side := range []struct {
		column string
		open   func() (*cluster, error)
	}{
		{peerColumn, func() (*cluster, error) { return b.containerdPods(ctx) }},
		{cniColumn, func() (*cluster, error) { return b.berthPods(ctx, cniColumn, "benchcni1") }},
		{ownColumn, func() (*cluster, error) { return b.berthPods(ctx, ownColumn, "") }},
	} {
		if !b.settings.sides.MatchString(side.column) {
			continue
		}
		b.log.InfoContext(ctx, "starting for pods", "side", side.column)
		c, err := side.open()
		if c != nil {
			clusters = append(clusters, c)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", side.column, err)
		}
	}
	if b.wants("cri-idle") {
		if err := b.idlePods(ctx, clusters); err != nil {
			return err
		}
	}
	for round := range b.podRounds {
		b.log.InfoContext(ctx, "pods", "round", round+1, "of", b.podRounds)
		for i := range clusters {
			c := clusters[(round+i)%len(clusters)]
			for _, p := range parts {
				if err := p.measure(ctx, c); err != nil {
					return fmt.Errorf("%s of %s: %w", p.name, c.column, err)
				}
			}
		}
	}
	for _, c := range clusters {
		if !b.wants("cri-many") {
			break
		}
		b.log.InfoContext(ctx, "many pods", "side", c.column)
		if err := b.manyPods(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.column, err)
		}
	}
	return nil
}

// idlePods measures what all use while they have pods that do nothing: all at
// the same time, and for so long that what a runtime does only every two
// minutes, as Go's collector does, is in it.
func (b *bench) idlePods(ctx context.Context, clusters []*cluster) error {
	const n, atOnce, settle, seconds = 50, 5, 20 * time.Second, 120
	workloads, before := make([][]workload, len(clusters)), make([]time.Duration, len(clusters))
	for i, c := range clusters {
		var err error
		if workloads[i], _, _, err = c.many(ctx, n, atOnce); err != nil {
			return fmt.Errorf("%s: %w", c.column, err)
		}
	}
	b.log.InfoContext(ctx, "idle pods", "seconds", seconds)
	if err := pause(ctx, settle); err != nil {
		return err
	}
	for i, c := range clusters {
		var err error
		if before[i], err = c.group.cpu(); err != nil {
			return err
		}
	}
	if err := pause(ctx, seconds*time.Second); err != nil {
		return err
	}
	for i, c := range clusters { // all, before anybody works again: they hear of each other's changes
		after, err := c.group.cpu()
		if err != nil {
			return err
		}
		b.results.add("cri-idle", c.column, milliseconds(after-before[i])/seconds)
	}
	for i, c := range clusters {
		if err := each(n, atOnce, func(j int) error { return c.down(ctx, workloads[i][j]) }); err != nil {
			return err
		}
		c.taken("", "", results{})
	}
	return nil
}

// podsOneByOne takes pods up, runs a command in them, and takes them down.
func (b *bench) podsOneByOne(ctx context.Context, c *cluster) error {
	const n = 10
	before, err := c.group.cpu()
	if err != nil {
		return err
	}
	for range n {
		w, err := c.up(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(c.exec(ctx, w, "true"), c.down(ctx, w)); err != nil {
			return err
		}
	}
	after, err := c.group.cpu()
	b.results.add("cri-cpu", c.column, milliseconds(after-before)/n)
	c.taken("cri-", c.column, b.results)
	return err
}

// podsAtOnce starts pods some at a time, and with them running measures what
// depends on their number.
func (b *bench) podsAtOnce(ctx context.Context, c *cluster) error {
	const n, atOnce = 50, 5
	daemon, helpers, err := c.memory()
	if err != nil {
		return err
	}
	workloads, took, spent, err := c.many(ctx, n, atOnce)
	if err != nil {
		return err
	}
	b.results.add("cri-burst", c.column, float64(n)/took.Seconds())
	b.results.add("cri-burst-cpu", c.column, milliseconds(spent)/n)
	c.taken("cri-burst-", c.column, b.results)

	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	daemonNow, helpersNow, err := c.memory()
	if err != nil {
		return err
	}
	b.results.add("cri-memory", c.column, float64(helpersNow-helpers)/n/(1<<10))
	b.results.add("cri-memory-all", c.column, float64(daemonNow-daemon+helpersNow-helpers)/n/(1<<10))
	b.results.add("cri-memory-daemon", c.column, float64(daemonNow)/(1<<20))

	if err := c.questions(ctx, workloads[0], 5); err != nil {
		return err
	}
	c.taken("cri-", c.column, b.results)

	before, err := c.group.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := each(n, atOnce, func(i int) error { return c.down(ctx, workloads[i]) }); err != nil {
		return err
	}
	b.results.add("cri-clear", c.column, time.Since(began).Seconds())
	after, err := c.group.cpu()
	b.results.add("cri-clear-cpu", c.column, milliseconds(after-before)/n)
	c.taken("cri-clear-", c.column, b.results)
	return err
}

// many takes n pods up, and says how long it took and its CPU time.
func (c *cluster) many(ctx context.Context, n, atOnce int) (all []workload, took, spent time.Duration, err error) {
	before, err := c.group.cpu()
	if err != nil {
		return nil, 0, 0, err
	}
	all = make([]workload, n)
	began := time.Now()
	err = each(n, atOnce, func(i int) (err error) {
		all[i], err = c.up(ctx)
		return err
	})
	took = time.Since(began)
	if err != nil {
		return all, took, 0, err
	}
	after, err := c.group.cpu()
	return all, took, after - before, err
}

// memory is the share of the daemon and of the processes beside it, in bytes.
func (c *cluster) memory() (daemon, helpers int64, err error) {
	if daemon, err = pss(c.pid()); err != nil {
		return 0, 0, err
	}
	helpers, err = pss(c.helpers()...)
	return daemon, helpers, err
}

// manyPods kills the daemon under many pods and waits until it knows all of
// them again; then it lists twice as many.
func (b *bench) manyPods(ctx context.Context, c *cluster) error {
	first, _, _, err := c.many(ctx, podsRestarted, 5)
	if err != nil {
		return err
	}
	before, err := c.running(ctx, podsRestarted)
	if err != nil {
		return err
	}
	for range b.restarts + 1 {
		c.kill()
		began := time.Now()
		if err := c.start(); err != nil {
			return err
		}
		c.conn.ResetConnectBackoff()
		var after []string
		err := c.poll(ctx, "pods after a restart", func(ctx context.Context) (err error) {
			after, err = c.running(ctx, podsRestarted)
			if err != nil {
				c.conn.ResetConnectBackoff()
			}
			return err
		})
		if err != nil {
			return err
		}
		b.results.add("cri-restart", c.column, milliseconds(time.Since(began)))
		if !slices.Equal(before, after) {
			return fmt.Errorf("other containers run after a restart: %s instead of %s", strings.Join(after, " "), strings.Join(before, " "))
		}
	}
	more, _, _, err := c.many(ctx, podsListed-podsRestarted, 5)
	if err != nil {
		return err
	}
	if _, err := c.running(ctx, podsListed); err != nil {
		return err
	}
	c.taken("cri-unused-", c.column, results{})
	times := 10
	if c.column == peerColumn {
		times = 2 // of its metrics each takes the time of a cup of tea
	}
	if err := c.questions(ctx, first[0], times); err != nil {
		return err
	}
	c.taken("cri-200-", c.column, b.results)
	all := append(first, more...)
	return each(len(all), 5, func(i int) error { return c.down(ctx, all[i]) })
}
