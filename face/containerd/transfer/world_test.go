package transfer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	streamingproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	coretransfer "github.com/containerd/containerd/v2/core/transfer"
	transferproxy "github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"berth/base/kv"
	facecontent "berth/face/containerd/content"
	"berth/face/containerd/snapshots"
	"berth/face/containerd/streaming"
	"berth/face/containerd/transfer"
	"berth/image/blob"
	"berth/node/content"
	"berth/node/image"
	"berth/node/lease"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
	"berth/spec"
)

// counting counts how many layers are unpacked.
type counting struct {
	*fakesnapshot.Store
	ingests atomic.Int32
}

func (c *counting) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	c.ingests.Add(1)
	return c.Store.Ingest(ctx, layer)
}

// trees are never looked at here.
type trees struct{}

func (trees) Mounts(context.Context, snapshot.Key) ([]snapshot.Mount, error) { return nil, nil }
func (trees) Remove(context.Context, snapshot.Key) error                     { return nil }

// world is a node with what containerd's transfer service needs.
type world struct {
	*testing.T
	store    *counting
	images   *image.Set
	leases   *lease.Set
	contents *content.Set
	names    *snapshots.Service
	stores   facecontent.Stores
	conn     *grpc.ClientConn
}

func newWorld(t *testing.T) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	w := &world{T: t, store: &counting{Store: fakesnapshot.New()}}
	db, err := kv.Open(filepath.Join(dir, "db"))
	w.must(err)
	blobs, err := blob.Open(t.Context(), filepath.Join(dir, "blobs"), log)
	w.must(err)
	w.leases, err = lease.Open(lease.Config{DB: db, Log: log, Freed: func(ctx context.Context) error {
		_, err := w.images.Collect(ctx)
		return err
	}})
	w.must(err)
	w.contents, err = content.Open(content.Config{DB: db, Blobs: blobs, Leases: w.leases, Namespaces: []string{spec.DefaultNamespace}, Log: log})
	w.must(err)
	w.images, err = image.Open(t.Context(), image.Config{DB: db, Blobs: blobs, Snapshots: w.store, Content: w.contents, Leases: w.leases, Log: log})
	w.must(err)
	w.contents.Natives = w.images
	w.names, err = snapshots.Open(t.Context(), snapshots.Config{
		Store: w.store, DB: db, Trees: trees{}, Log: log,
		Node: &snapshots.Node{Dir: dir, Names: []string{"overlayfs"}, Layers: w.images, Leases: w.leases},
	})
	w.must(err)
	w.images.SetHolders(w.names.LetGo)
	w.leases.Own(w.contents)
	w.leases.Own(w.images.Owner())
	w.leases.Own(snapshots.Collected{Service: w.names})
	w.stores = facecontent.NewStores(facecontent.Config{Content: w.contents, Images: w.images, Leases: w.leases})
	streams := streaming.New()
	service := transfer.New(transfer.Config{
		Content: w.stores.Content, Images: w.stores.Images, Leases: w.stores.Leases, Streams: streams,
		Layers: w.images, Snapshots: w.names, Snapshotters: []string{"overlayfs"}, Log: log,
	})
	server := grpc.NewServer()
	streams.Register(server)
	service.Register(server)
	listener := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	w.conn, err = grpc.NewClient("passthrough:world", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	w.must(err)
	t.Cleanup(func() {
		_ = w.conn.Close()
		server.Stop()
		serving.Wait()
		w.must(errors.Join(w.images.Close(), blobs.Close(), db.Close()))
	})
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) in(namespace string) context.Context {
	return namespaces.WithNamespace(w.Context(), namespace)
}

// client is containerd's own.
func (w *world) client() coretransfer.Transferrer {
	return transferproxy.NewTransferrer(w.conn, streamingproxy.NewStreamCreator(w.conn))
}

// noLeases checks that a transfer has left none.
func (w *world) noLeases(namespace string) {
	w.Helper()
	all, err := w.stores.Leases.List(w.in(namespace))
	w.must(err)
	if len(all) > 0 {
		w.Errorf("namespace %s: leases %v are left", namespace, ids(all))
	}
}

func ids(all []leases.Lease) (ids []string) {
	for _, l := range all {
		ids = append(ids, l.ID)
	}
	return ids
}

// closing collects what is written and says when it is closed.
type closing struct {
	*os.File
	once sync.Once
	done chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.File.Close()
}
