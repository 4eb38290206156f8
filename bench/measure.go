package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// side is what is measured: containerd or Berth.
type side interface {
	open(ctx context.Context, first string) error
	close(ctx context.Context)
	once(ctx context.Context, n int) ([]float64, error)
	burst(ctx context.Context, n, atOnce int) (float64, error)
	clear(ctx context.Context, n, atOnce int) error
	lists(ctx context.Context, n int) (list, stats []float64, err error)
	restart(ctx context.Context, n int) (float64, error)
	memory() (daemon, others int64, err error)
	pids() []int
	pull(ctx context.Context, ref string) error
	drop(ctx context.Context, ref string) error
	remove(ctx context.Context, ref string) (float64, error)
}

// named is a side with the column its samples go to.
type named struct {
	side
	column string
}

// bench is one run.
type bench struct {
	settings
	log     *slog.Logger
	place   *place
	sides   []named
	results results
}

// prepare makes the place and starts both daemons in it, each with the small
// image.
func prepare(ctx context.Context, s settings, log *slog.Logger) (b *bench, err error) {
	b = &bench{settings: s, log: log, results: results{}}
	defer func() {
		if err != nil {
			b.close(ctx, &err)
		}
	}()
	if s.once < 1 || s.bursts < 1 || s.containers < 1 || s.pulls < 1 || s.builds < 1 {
		return b, errors.New("counts start at 1")
	}
	if err := b.images(ctx); err != nil {
		return b, err
	}
	if b.place, err = newPlace(ctx); err != nil {
		return b, err
	}
	peer, err := newContainerd(b.place, s, "containerd", 4)
	if err != nil {
		return b, err
	}
	ours, err := newBerth(b.place, s)
	if err != nil {
		return b, err
	}
	for _, side := range []named{{peer, peerColumn}, {ours, ourColumn}} {
		if !s.sides.MatchString(side.column) {
			continue
		}
		b.sides = append(b.sides, side)
		log.InfoContext(ctx, "starting", "side", side.column)
		if err := side.open(ctx, s.first); err != nil {
			return b, fmt.Errorf("%s: %w", side.column, err)
		}
	}
	return b, nil
}

// close takes everything down again.
func (b *bench) close(ctx context.Context, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, side := range b.sides {
		side.close(ctx)
	}
	if b.place == nil {
		return
	}
	if b.keepLogs != "" {
		logs, _ := filepath.Glob(filepath.Join(b.place.dir, "*.log"))
		for _, log := range logs {
			*err = errors.Join(*err, copyFile(log, filepath.Join(b.keepLogs, filepath.Base(log))))
		}
	}
	*err = errors.Join(*err, b.place.close(ctx))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// images makes the archives that are missing.
func (b *bench) images(ctx context.Context) error {
	if _, err := os.Stat(b.first); errors.Is(err, os.ErrNotExist) {
		image, err := output(ctx, nil, "test/first-image.sh", "docker.io/"+firstImage)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(b.first), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(b.first, image, 0o644); err != nil {
			return err
		}
	}
	if !b.rows.MatchString("pull") {
		return nil
	}
	if _, err := os.Stat(b.big); errors.Is(err, os.ErrNotExist) {
		b.log.InfoContext(ctx, "making the image to pull", "file", b.big)
		return writeBig(b.big)
	}
	return nil
}

// inTurn runs do for each side, beginning with another one each round.
func (b *bench) inTurn(round int, sides []named, do func(named) error) error {
	for i := range sides {
		side := sides[(round+i)%len(sides)]
		if err := do(side); err != nil {
			return fmt.Errorf("%s: %w", side.column, err)
		}
	}
	return nil
}

func (b *bench) wants(rows ...string) bool {
	return slices.ContainsFunc(rows, b.rows.MatchString)
}

func (b *bench) measure(ctx context.Context) error {
	if b.wants("once") {
		if err := b.measureOnce(ctx); err != nil {
			return err
		}
	}
	if b.wants("burst", "memory", "list", "stats", "restart", "idle") {
		for round := range b.bursts {
			b.log.InfoContext(ctx, "burst", "round", round+1, "of", b.bursts)
			err := b.inTurn(round, b.sides, func(s named) error { return b.measureMany(ctx, s, round) })
			if err != nil {
				return err
			}
		}
	}
	if b.wants("pull") {
		if err := b.measurePulls(ctx); err != nil {
			return err
		}
	}
	if err := b.measureDoor(ctx); err != nil {
		return err
	}
	if err := b.measureStorage(ctx); err != nil {
		return err
	}
	if err := b.measurePods(ctx); err != nil {
		return err
	}
	return b.measureSoak(ctx)
}

func (b *bench) measureOnce(ctx context.Context) error {
	const block = 10
	for done := 0; done < b.once; done += block {
		b.log.InfoContext(ctx, "create to removed", "done", done, "of", b.once)
		err := b.inTurn(done/block, b.sides, func(s named) error {
			before, err := cpu(s.pids()...)
			if err != nil {
				return err
			}
			n := min(block, b.once-done)
			times, err := s.once(ctx, n)
			if err != nil {
				return err
			}
			b.results.add("once", s.column, times...)
			after, err := cpu(s.pids()...)
			b.results.add("once-cpu", s.column, milliseconds(after-before)/float64(n))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// measureMany starts many containers, and with them running measures all that
// depends on their number.
func (b *bench) measureMany(ctx context.Context, s named, round int) error {
	n := b.containers
	before, _, err := s.memory()
	if err != nil {
		return err
	}
	took, err := s.burst(ctx, n, b.atOnce)
	if err != nil {
		return err
	}
	b.results.add("burst", s.column, float64(n)/took*1000)

	if b.wants("memory") {
		if err := pause(ctx, 3*time.Second); err != nil {
			return err
		}
		daemon, others, err := s.memory()
		if err != nil {
			return err
		}
		b.results.add("memory", s.column, float64(daemon-before+others)/float64(n)/(1<<20))
		b.results.add("memory-daemon", s.column, float64(daemon)/(1<<20))
		b.results.add("memory-others", s.column, float64(others)/(1<<20))
	}
	if b.wants("list", "stats") {
		list, stats, err := s.lists(ctx, b.lists)
		if err != nil {
			return err
		}
		b.results.add("list", s.column, list...)
		b.results.add("stats", s.column, stats...)
	}
	if b.wants("idle") && round == 0 {
		if err := b.measureIdle(ctx, s); err != nil {
			return err
		}
	}
	for range b.restarts {
		if !b.wants("restart") {
			break
		}
		took, err := s.restart(ctx, n)
		if err != nil {
			return err
		}
		b.results.add("restart", s.column, took)
	}
	return s.clear(ctx, n, b.atOnce)
}

func (b *bench) measureIdle(ctx context.Context, s named) error {
	const seconds = 10
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	before, err := cpu(s.pids()...)
	if err != nil {
		return err
	}
	if err := pause(ctx, seconds*time.Second); err != nil {
		return err
	}
	after, err := cpu(s.pids()...)
	b.results.add("idle", s.column, milliseconds(after-before)/seconds)
	return err
}

// measurePulls pulls the large image from a registry on loopback, into nothing
// each time.
func (b *bench) measurePulls(ctx context.Context) error {
	registry, err := newRegistry(ctx, b.place, b.settings)
	if err != nil {
		return err
	}
	defer registry.stop(context.WithoutCancel(ctx))
	if err := registry.fill(ctx, b.big); err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}

	sides := b.sides
	if b.settings.sides.MatchString(peerColumn) {
		plain, err := newContainerd(b.place, b.settings, "default", 1)
		if err != nil {
			return err
		}
		if err := plain.open(ctx, ""); err != nil {
			return err
		}
		defer plain.close(context.WithoutCancel(ctx))
		sides = append(slices.Clip(sides), named{plain, defaultColumn})
	}
	for round := range b.pulls {
		b.log.InfoContext(ctx, "pull", "round", round+1, "of", b.pulls)
		err := b.inTurn(round, sides, func(s named) error { return b.measurePull(ctx, s, registry) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) measurePull(ctx context.Context, s named, registry *registry) error {
	unix.Sync() // what the last round left to write is not this round's work
	before, err := cpu(s.pids()...)
	if err != nil {
		return err
	}
	serving, err := cpu(registry.pid())
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.pull(ctx, registry.ref); err != nil {
		return err
	}
	b.results.add("pull", s.column, time.Since(began).Seconds())
	after, err := cpu(s.pids()...)
	if err != nil {
		return err
	}
	b.results.add("pull-cpu", s.column, (after - before).Seconds())
	served, err := cpu(registry.pid())
	if err != nil {
		return err
	}
	b.results.add("pull-registry-cpu", s.column, (served - serving).Seconds())
	began = time.Now()
	err = s.drop(ctx, registry.ref)
	b.results.add("drop", s.column, time.Since(began).Seconds())
	return err
}
