package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"golang.org/x/sys/unix"
)

// request asks for one call of the snapshotter. Layer reads the file Path, a
// gzipped tar, as the layer Key on Parent.
type request struct {
	Verb   string `json:"verb"`
	Key    string `json:"key"`
	Parent string `json:"parent"`
	Path   string `json:"path"`

	Volatile bool `json:"volatile"` // without the syncs of overlayfs
}

// reply is what the call took by the clock, in nanoseconds.
type reply struct {
	Took  int64  `json:"took"`
	Error string `json:"error,omitempty"`
}

// serveSnapshots drives containerd's overlayfs snapshotter in this process, as
// it comes, by requests from standard input.
func serveSnapshots(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	store, err := overlay.NewSnapshotter(dir)
	if err != nil {
		return err
	}
	defer store.Close()
	mount.SetTempMountLocation(filepath.Join(dir, "tmp"))
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return err
	}
	lines, answers := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		began := time.Now()
		err := call(ctx, store, dir, q)
		answer := reply{Took: time.Since(began).Nanoseconds()}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func call(ctx context.Context, store snapshots.Snapshotter, dir string, q request) (err error) {
	switch q.Verb {
	case "prepare":
		_, err = store.Prepare(ctx, q.Key, q.Parent)
	case "view":
		_, err = store.View(ctx, q.Key, q.Parent)
	case "mount":
		var mounts []mount.Mount
		if mounts, err = store.Mounts(ctx, q.Key); err == nil {
			if q.Volatile {
				mounts[0].Options = append(mounts[0].Options, "volatile")
			}
			err = mount.All(mounts, q.Path)
		}
	case "unmount":
		err = mount.UnmountAll(q.Path, unix.UMOUNT_NOFOLLOW)
	case "commit":
		err = store.Commit(ctx, q.Key, q.Parent)
	case "sync":
		var d *os.File
		if d, err = os.Open(dir); err == nil {
			err = unix.Syncfs(int(d.Fd()))
			d.Close()
		}
	case "settle": // there is nothing to do
	case "remove":
		err = store.Remove(ctx, q.Key)
	case "layer":
		err = layer(ctx, store, q)
	default:
		err = fmt.Errorf("no verb %q", q.Verb)
	}
	return err
}

func layer(ctx context.Context, store snapshots.Snapshotter, q request) error {
	file, err := os.Open(q.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	plain, err := gzip.NewReader(bufio.NewReaderSize(file, 1<<20))
	if err != nil {
		return err
	}
	active := "extract-" + q.Key
	mounts, err := store.Prepare(ctx, active, q.Parent)
	if err != nil {
		return err
	}
	err = mount.WithTempMount(ctx, mounts, func(root string) error {
		_, err := archive.Apply(ctx, root, plain)
		return err
	})
	if err != nil {
		return err
	}
	return store.Commit(ctx, q.Key, active)
}

// rmi removes an image and waits until what it held is collected.
func (p *peer) rmi(ctx context.Context, name string) error {
	defer p.add("rmi", time.Now())
	return p.ImageService().Delete(ctx, name, images.SynchronousDelete())
}
