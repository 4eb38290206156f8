package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth/base/kv"
	face "berth/face/containerd/snapshots"
	"berth/image/blob"
	"berth/node/image"
	"berth/node/lease"
	"berth/node/snapshot/rootfs"
)

// The node's own door passes containerd's suite for snapshotters, too: names of
// a namespace, over a socket.
func TestContainerdSuiteOfTheNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for _, rung := range suiteRungs {
		t.Run(rung.driver, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, rung.knownAs, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				s, end, err := nodeNames(ctx, root, rung.driver)
				return s, func() error { return errors.Join(end(), takeDown(root)) }, err
			})
		})
	}
}

// nodeNames is the service of the node's door on a store of its own.
func nodeNames(ctx context.Context, root, driver string) (_ snapshots.Snapshotter, end func() error, err error) {
	log := slog.New(slog.DiscardHandler)
	var closers []func() error
	end = func() error {
		var all []error
		for i := range closers {
			all = append(all, closers[len(closers)-1-i]())
		}
		return errors.Join(all...)
	}
	db, err := kv.Open(filepath.Join(root, "db"))
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, db.Close)
	store, _, err := newLadder(db).openStore(ctx, driver, storeConfig{Dir: filepath.Join(root, "store"), DB: db, Log: log})
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, store.Close)
	blobs, err := blob.Open(ctx, filepath.Join(root, "blobs"), log)
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, blobs.Close)
	images, err := image.Open(ctx, image.Config{DB: db, Blobs: blobs, Snapshots: store, Log: log})
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, images.Close)
	leases, err := lease.Open(lease.Config{DB: db, Log: log})
	if err != nil {
		return nil, end, err
	}
	dir := filepath.Join(root, "trees")
	trees, err := rootfs.Open(ctx, dir, store)
	if err != nil {
		return nil, end, err
	}
	service, err := face.Open(ctx, face.Config{
		Store: store, DB: db, Trees: trees, Log: log,
		Node: &face.Node{Dir: dir, Names: []string{"overlayfs"}, Layers: images, Leases: leases},
	})
	if err != nil {
		return nil, end, err
	}
	server := grpc.NewServer()
	service.Register(server)
	socket := filepath.Join(root, "sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, end, err
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	closers = append(closers, func() error { server.Stop(); serving.Wait(); return nil })
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, conn.Close)
	return proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "overlayfs"), end, nil
}
