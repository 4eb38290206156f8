package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"berth/spec"
)

// counted says whether a room counts that folder of the root by itself.
func counted(name string) bool { return name == "blobs" || name == "volumes" }

// layered says whether a driver of snapshots keeps layers in that folder.
func layered(name string) bool {
	switch name {
	case "objects", "meta", "recipes", "pending", "layers", "links", "trees", "mnt":
		return true
	}
	return false
}

// DiskUsage implements rest.System.
func (n *node) DiskUsage(ctx context.Context) (spec.DiskUsage, error) {
	images, err := n.images.DiskUsage(ctx)
	if err != nil {
		return spec.DiskUsage{}, err
	}
	usage := spec.DiskUsage{
		Images: images.Images, Blobs: images.Blobs, Store: images.Store, ImageList: images.List,
		ContainerList: []spec.Container{}, VolumeList: []spec.Volume{},
	}
	if usage.ImageList == nil {
		usage.ImageList = []spec.ImageUsage{}
	}
	if err := n.containerUsage(ctx, &usage); err != nil {
		return usage, err
	}
	if err := n.volumeUsage(ctx, &usage); err != nil {
		return usage, err
	}
	if err := n.folderUsage(ctx, &usage, images.Estimated); err != nil {
		return usage, err
	}
	if usage.BuildCache, err = n.builder.Share(ctx); err != nil {
		return usage, err
	}
	usage.Total = usage.Images.Size + usage.Containers.Size + usage.Volumes.Size + usage.Blobs.Size + usage.Other
	return usage, nil
}

func (n *node) containerUsage(ctx context.Context, usage *spec.DiskUsage) error {
	containers, err := n.containers.List(ctx, true, nil)
	if err != nil {
		return err
	}
	for _, c := range containers {
		sizes, err := n.containers.Sizes(ctx, c.ID)
		if err != nil {
			continue // removed meanwhile
		}
		add(&usage.Containers, c.State.Pid != 0, sizes.RW)
		c.Size = &sizes
		usage.ContainerList = append(usage.ContainerList, c)
	}
	// Others than containers may have writable trees too, such as another
	// engine that uses the store.
	if rest := usage.Store.Uppers - usage.Containers.Size; rest > 0 {
		usage.Containers.Size += rest
	}
	return nil
}

func (n *node) volumeUsage(ctx context.Context, usage *spec.DiskUsage) error {
	volumes, err := n.volumes.List(ctx, nil)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		size, err := n.volumes.Size(ctx, v.Name)
		if err != nil {
			continue // removed meanwhile
		}
		add(&usage.Volumes, len(v.UsedBy) > 0, size)
		v.Size = &size
		usage.VolumeList = append(usage.VolumeList, v)
	}
	return nil
}

func add(share *spec.DiskShare, active bool, size int64) {
	share.Total++
	share.Size += size
	if active {
		share.Active++
	} else {
		share.Reclaimable += size
	}
}

// folderUsage counts what no room does. Where the store of layers has not
// counted itself, its folders are: layers may share more than it knows.
func (n *node) folderUsage(ctx context.Context, usage *spec.DiskUsage, estimated bool) error {
	b := blocks{root: n.config.Root, seen: map[inode]bool{}}
	if estimated {
		store, err := b.below(ctx, layered)
		if err != nil {
			return err
		}
		layers := max(0, store-usage.Containers.Size)
		usage.Store.Layers, usage.Images.Size = layers, layers
		usage.Images.Reclaimable = min(usage.Images.Reclaimable, layers)
	}
	other, err := b.below(ctx, func(name string) bool { return !counted(name) && !layered(name) })
	usage.Other = other
	return err
}

// blocks counts what the files of a folder take, those with several names
// once, and what is mounted there not at all.
type blocks struct {
	root   string
	total  int64
	device uint64
	seen   map[inode]bool
}

// below counts those folders of the root that are wanted, but for what has
// been counted before.
func (b *blocks) below(ctx context.Context, wanted func(name string) bool) (int64, error) {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return 0, err
	}
	before := b.total
	for _, e := range entries {
		if !wanted(e.Name()) {
			continue
		}
		err := filepath.WalkDir(filepath.Join(b.root, e.Name()), func(_ string, d fs.DirEntry, err error) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			if err != nil {
				return err
			}
			return b.count(d)
		})
		if err != nil {
			return 0, err
		}
	}
	return b.total - before, nil
}

type inode struct{ dev, ino uint64 }

func (b *blocks) count(d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return nil //nolint:nilerr // gone meanwhile
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if b.device == 0 {
		b.device = st.Dev
	}
	if st.Dev != b.device {
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	if at := (inode{st.Dev, st.Ino}); st.Nlink > 1 && !d.IsDir() {
		if b.seen[at] {
			return nil
		}
		b.seen[at] = true
	}
	b.total += st.Blocks * 512
	return nil
}
