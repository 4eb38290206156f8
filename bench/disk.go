package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where one run keeps everything: disk/ an ext4 on a loop device, as
// large installations have it, and run/ a tmpfs.
type place struct{ dir, loop string }

func (p *place) disk(name ...string) string {
	return filepath.Join(append([]string{p.dir, "disk"}, name...)...)
}

func (p *place) run(name ...string) string {
	return filepath.Join(append([]string{p.dir, "run"}, name...)...)
}

func newPlace(ctx context.Context) (p *place, err error) {
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	p = &place{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(context.WithoutCancel(ctx)))
		}
	}()
	file := filepath.Join(dir, "disk.img")
	for _, sub := range []string{p.disk(), p.run()} {
		if err := os.Mkdir(sub, 0o711); err != nil {
			return p, err
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return p, err
	}
	if err := os.Truncate(file, 12<<30); err != nil {
		return p, err
	}
	if _, err := output(ctx, nil, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-N", "1000000", file); err != nil {
		return p, err
	}
	out, err := output(ctx, nil, "losetup", "--find", "--show", file)
	if err != nil {
		return p, err
	}
	p.loop = strings.TrimSpace(string(out))
	if err := unix.Mount(p.loop, p.disk(), "ext4", 0, ""); err != nil {
		return p, fmt.Errorf("mount %s: %w", p.loop, err)
	}
	if err := unix.Mount("tmpfs", p.run(), "tmpfs", 0, "mode=0711"); err != nil {
		return p, fmt.Errorf("mount a tmpfs: %w", err)
	}
	return p, nil
}

// close unmounts whatever is mounted below and removes all.
func (p *place) close(ctx context.Context) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var below []string
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], p.dir+"/") {
			below = append(below, fields[4])
		}
	}
	for _, target := range slices.Backward(below) {
		if err := unix.Unmount(target, 0); err != nil {
			err = errors.Join(fmt.Errorf("unmount %s: %w", target, err), unix.Unmount(target, unix.MNT_DETACH))
			if !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
	}
	if p.loop != "" {
		if _, err := output(ctx, nil, "losetup", "--detach", p.loop); err != nil {
			return err
		}
	}
	return os.RemoveAll(p.dir)
}
