package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// imageRows are the storage rows that go through the daemons.
var imageRows = []string{"storage-pull", "storage-remove", "storage-disk"}

// pulledTags are the images in the order that they are pulled, each onto those
// before.
func pulledTags() []string { return []string{"first", "moved", "modes", "config"} }

// measureImages pulls images of many layers from a registry on loopback.
func (b *bench) measureImages(ctx context.Context) (err error) {
	server, err := shelf(b.shelf).serve(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.close()) }()
	if b.wants("storage-pull", "storage-remove") {
		if err := b.measureLayeredPulls(ctx, server); err != nil {
			return err
		}
	}
	if b.wants("storage-disk") {
		return b.measureDisk(ctx, server)
	}
	return nil
}

// measureLayeredPulls measures pulls, ours by a node that brings all of an
// image however much it remembers of it.
func (b *bench) measureLayeredPulls(ctx context.Context, server *shelfServer) error {
	sides := slices.Clone(b.sides)
	for i := range sides {
		if sides[i].column != ourColumn {
			continue
		}
		node, err := newNode(b.place, b.settings, "eager", "[registry]\nlazy = \"off\"\n")
		if err != nil {
			return err
		}
		if err := node.open(ctx, b.first); err != nil {
			return err
		}
		defer node.close(context.WithoutCancel(ctx))
		sides[i].side = node
	}
	for round := range b.pulls {
		b.log.InfoContext(ctx, "pull of layers", "round", round+1, "of", b.pulls)
		err := b.inTurn(round, sides, func(s named) error { return b.layeredPulls(ctx, s, server) })
		if err != nil {
			return err
		}
	}
	return nil
}

// measureDisk measures both sides as they come, and a node of ours that keeps
// no compressed layer which it can fetch again.
func (b *bench) measureDisk(ctx context.Context, server *shelfServer) error {
	sides := slices.Clone(b.sides)
	for i := range sides {
		if sides[i].column == ourColumn {
			sides[i].column = keepColumn
		}
	}
	if b.settings.sides.MatchString(ourColumn) {
		node, err := newNode(b.place, b.settings, "dropping", "[registry]\nblobs = \"drop\"\nlazy = \"off\"\n")
		if err != nil {
			return err
		}
		if err := node.open(ctx, b.first); err != nil {
			return err
		}
		defer node.close(context.WithoutCancel(ctx))
		sides = append(sides, named{node, ourColumn})
	}
	return b.inTurn(0, sides, func(s named) error { return b.versions(ctx, s, server) })
}

// keepColumn is Berth with the policy for compressed layers that it comes
// with.
const keepColumn = "berth keeping blobs"

// layeredPulls pulls an image into nothing, then one that has the same bodies
// in other layers, then two with the layers of the first and new metadata.
func (b *bench) layeredPulls(ctx context.Context, s named, server *shelfServer) error {
	tags := pulledTags()
	for _, tag := range tags {
		if err := b.calm(ctx, s); err != nil {
			return err
		}
		before, err := cpu(s.pids()...)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := s.pull(ctx, server.ref(tag)); err != nil {
			return err
		}
		b.results.add("storage-pull-"+tag, s.column, time.Since(began).Seconds())
		after, err := cpu(s.pids()...)
		if err != nil {
			return err
		}
		b.results.add("storage-pull-"+tag+"-cpu", s.column, (after - before).Seconds())
	}
	for _, tag := range slices.Backward(tags) {
		if err := b.calm(ctx, s); err != nil {
			return err
		}
		took, err := s.remove(ctx, server.ref(tag))
		if err != nil {
			return err
		}
		if tag == "first" { // the last one, of which nothing is shared
			b.results.add("storage-remove", s.column, took)
		}
	}
	return b.calm(ctx, s)
}

// versions pulls versions of an image and sees what the disk loses.
func (b *bench) versions(ctx context.Context, s named, server *shelfServer) error {
	empty, err := b.used(ctx, s)
	if err != nil {
		return err
	}
	var one int64
	tags := []string{"first"}
	for n := 1; n < diskVersions; n++ {
		tags = append(tags, versionTag(n))
	}
	for i, tag := range tags {
		b.log.InfoContext(ctx, "version", "side", s.column, "tag", tag)
		if err := s.pull(ctx, server.ref(tag)); err != nil {
			return err
		}
		if i == 0 {
			if one, err = b.used(ctx, s); err != nil {
				return err
			}
		}
	}
	all, err := b.used(ctx, s)
	if err != nil {
		return err
	}
	b.results.add("storage-disk-one", s.column, float64(one-empty)/1e6)
	b.results.add("storage-disk-all", s.column, float64(all-empty)/1e6)
	b.results.add("storage-disk", s.column, float64(all-empty)/float64(one-empty))
	for _, tag := range slices.Backward(tags) {
		if _, err := s.remove(ctx, server.ref(tag)); err != nil {
			return err
		}
	}
	return b.freed(ctx, s, empty+(one-empty)/4) // what is remembered for lazy starts stays
}

// freed waits until no more than so much of the disk is taken: sweeps take
// their time.
func (b *bench) freed(ctx context.Context, s named, most int64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		if err := b.calm(ctx, s); err != nil {
			return fmt.Errorf("wait for the disk to be freed: %w", err)
		}
		taken, err := b.taken()
		if err != nil || taken <= most {
			return err
		}
	}
}

// calm waits until the side has no work in the background, and writes the
// disk out.
func (b *bench) calm(ctx context.Context, s named) error {
	if err := quiet(ctx, lull, s.pids()...); err != nil {
		return err
	}
	return b.place.sync()
}

// used is what is taken of the disk, when all is written and tidied up.
func (b *bench) used(ctx context.Context, s named) (int64, error) {
	if node, ours := s.side.(*berth); ours {
		if err := node.poll(ctx, "metadata at rest", node.rests); err != nil {
			return 0, err
		}
	}
	if err := b.calm(ctx, s); err != nil {
		return 0, err
	}
	return b.taken()
}

func (b *bench) taken() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(b.place.disk(), &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// rests fails while metadata are kept as they are mounted; after half a minute
// without use they are compressed.
func (b *berth) rests(context.Context) error {
	plain, err := filepath.Glob(filepath.Join(b.root, "meta", "*.erofs"))
	if err == nil && len(plain) > 0 {
		err = fmt.Errorf("%d images", len(plain))
	}
	return err
}

// remove removes an image and what only it holds, in milliseconds as the
// caller sees it.
func (c *containerd) remove(ctx context.Context, ref string) (float64, error) {
	out, err := output(ctx, nil, filepath.Join(c.tools, "peer"), c.socket, ref, c.runtime, "rmi")
	if err != nil {
		return 0, err
	}
	var times map[string][]float64
	if err := json.Unmarshal(out, &times); err != nil {
		return 0, err
	}
	if len(times["rmi"]) != 1 {
		return 0, fmt.Errorf("peer said %s", out)
	}
	return times["rmi"][0], nil
}

func (b *berth) remove(ctx context.Context, ref string) (float64, error) {
	began := time.Now()
	_, err := b.ImageRemove(ctx, ref, false)
	return milliseconds(time.Since(began)), err
}

// shelfDir is where images of many layers are kept between runs.
func shelfDir() string { return filepath.Join(".cache", "bench", "layered") }
