package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/base/errs"
	"berth/client"
	"berth/spec"
)

// berth is a node of its own root, state and socket, driven by the client.
type berth struct {
	daemon
	*client.Client
	program, runtime, socket, root, state string
	ids                                   []string // of the burst
}

func newBerth(p *place, s settings) (*berth, error) { return newNode(p, s, "berth", "") }

// newNode makes a node with a configuration file, unless that is empty.
func newNode(p *place, s settings, name, config string) (*berth, error) {
	program, err := filepath.Abs(s.berth)
	if err != nil {
		return nil, err
	}
	b := &berth{program: program, runtime: s.runtime, socket: p.run(name + ".sock"), root: p.disk(name), state: p.run(name)}
	b.Client = client.New(b.socket)
	b.daemon = daemon{
		argv: []string{program, "node", "--root", b.root, "--state", b.state, "--socket", b.socket, "--log-level", "warn"},
		log:  filepath.Join(p.dir, name+".log"),
	}
	if config == "" {
		return b, nil
	}
	file := p.run(name + ".toml")
	b.argv = append(b.argv, "--config", file)
	return b, os.WriteFile(file, []byte(config), 0o600)
}

func (b *berth) open(ctx context.Context, first string) error {
	if err := b.start(); err != nil {
		return err
	}
	if err := b.poll(ctx, "berth node", b.Ping); err != nil {
		return err
	}
	archive, err := os.Open(first)
	if err != nil {
		return err
	}
	defer archive.Close()
	if _, err := b.ImageLoad(ctx, archive, nil); err != nil {
		return err
	}
	_, err = b.once(ctx, 3) // warm
	return err
}

// close ends every container, the node and its keeper.
func (b *berth) close(ctx context.Context) {
	if b.cmd == nil {
		return
	}
	keeper, _ := b.keeper()
	_ = b.clear(ctx, 0, 10)
	b.stop(ctx)
	if keeper > 0 {
		endTree(keeper)
	}
}

func (b *berth) keeper() (int, error) {
	text, err := os.ReadFile(filepath.Join(b.state, "keeper.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// cli runs the program as a user does.
func (b *berth) cli(ctx context.Context, args ...string) error {
	_, err := output(ctx, nil, append([]string{b.program, "--socket", b.socket}, args...)...)
	return err
}

func (b *berth) config(args ...string) spec.ContainerConfig {
	return spec.ContainerConfig{Image: firstImage, Entrypoint: []string{}, Command: args, Runtime: b.runtime, Network: spec.NetworkChoice{Mode: "none"}}
}

func (b *berth) once(ctx context.Context, n int) ([]float64, error) {
	var times []float64
	for range n {
		began := time.Now()
		c, err := b.ContainerCreate(ctx, b.config("/bin/true"))
		if err != nil {
			return nil, err
		}
		if err := b.ContainerStart(ctx, c.ID); err != nil {
			return nil, err
		}
		exit, err := b.ContainerWait(ctx, c.ID, client.NotRunning)
		if err != nil {
			return nil, err
		}
		if err := b.ContainerRemove(ctx, c.ID, false, false); err != nil {
			return nil, err
		}
		times = append(times, milliseconds(time.Since(began)))
		if exit.Code != 0 {
			return nil, fmt.Errorf("/bin/true ended with %d", exit.Code)
		}
	}
	return times, nil
}

func (b *berth) burst(ctx context.Context, n, atOnce int) (float64, error) {
	var mu sync.Mutex
	began := time.Now()
	err := each(n, atOnce, func(int) error {
		c, err := b.ContainerCreate(ctx, b.config("/bin/sleep", "1000000"))
		if err != nil {
			return err
		}
		mu.Lock()
		b.ids = append(b.ids, c.ID)
		mu.Unlock()
		return b.ContainerStart(ctx, c.ID)
	})
	return milliseconds(time.Since(began)), err
}

func (b *berth) clear(ctx context.Context, _, atOnce int) error {
	ids := b.ids
	b.ids = nil
	return each(len(ids), atOnce, func(i int) error {
		err := b.ContainerRemove(ctx, ids[i], true, false)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		return err
	})
}

func (b *berth) lists(ctx context.Context, n int) (list, stats []float64, err error) {
	for range n {
		began := time.Now()
		all, err := b.ContainerList(ctx, true, nil)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, milliseconds(time.Since(began)))
		began = time.Now()
		use, err := b.ContainerStats(ctx, nil)
		if err != nil {
			return nil, nil, err
		}
		stats = append(stats, milliseconds(time.Since(began)))
		if len(all) != len(b.ids) || len(use) != len(b.ids) {
			return nil, nil, fmt.Errorf("%d listed and %d measured of %d containers", len(all), len(use), len(b.ids))
		}
	}
	return list, stats, nil
}

func (b *berth) restart(ctx context.Context, n int) (float64, error) {
	b.kill()
	began := time.Now()
	if err := b.start(); err != nil {
		return 0, err
	}
	err := b.poll(ctx, "a list after a restart", func(ctx context.Context) error {
		all, err := b.ContainerList(ctx, false, nil)
		if err != nil {
			return err
		}
		running := 0
		for _, c := range all {
			if c.State.Status == spec.Running {
				running++
			}
		}
		if running < n {
			return fmt.Errorf("%d of %d run", running, n)
		}
		return nil
	})
	return milliseconds(time.Since(began)), err
}

func (b *berth) memory() (daemon, others int64, err error) {
	if daemon, err = pss(b.pid()); err != nil {
		return 0, 0, err
	}
	keeper, err := b.keeper()
	if err != nil {
		return 0, 0, err
	}
	others, err = pss(keeper)
	return daemon, others, err
}

func (b *berth) pids() []int {
	keeper, err := b.keeper()
	if err != nil {
		return []int{b.pid()}
	}
	return []int{b.pid(), keeper}
}

func (b *berth) pull(ctx context.Context, ref string) error { return b.cli(ctx, "pull", "-q", ref) }

// drop removes the image, and waits until its blobs and layers are gone.
func (b *berth) drop(ctx context.Context, ref string) error {
	if err := b.cli(ctx, "rmi", ref); err != nil {
		return err
	}
	return b.poll(ctx, "the removal of "+ref, func(context.Context) error {
		for _, dir := range []string{"blobs/sha256", "layers"} {
			entries, err := os.ReadDir(filepath.Join(b.root, dir))
			if err != nil {
				return err
			}
			if len(entries) > 6 { // the small image stays
				return fmt.Errorf("%d left in %s", len(entries), dir)
			}
		}
		return nil
	})
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// each calls do for 0 to n-1, some at once, and returns one of the failures.
func each(n, atOnce int, do func(int) error) error {
	var group sync.WaitGroup
	failed := make(chan error, n)
	slots := make(chan struct{}, max(1, atOnce))
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				failed <- err
			}
		})
	}
	group.Wait()
	close(failed)
	return <-failed
}
