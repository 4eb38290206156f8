package content_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	cdcontent "github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"berth/base/kv"
	"berth/face/containerd/content"
	"berth/face/containerd/wire"
	"berth/image/blob"
	"berth/image/remote"
	rooms "berth/node/content"
	"berth/node/image"
	"berth/node/lease"
	"berth/node/snapshot/fakesnapshot"
	"berth/spec"
)

// world is the rooms behind the services, and clients of these.
type world struct {
	t       *testing.T
	root    string
	blobs   *blob.Store
	content *rooms.Set
	images  *image.Set
	leases  *lease.Set
	layers  *fakesnapshot.Store
	events  *told
	service *content.Service
	stop    func()

	store     cdcontent.Store
	contents  contentapi.ContentClient
	names     imagesapi.ImagesClient
	manager   leases.Manager
	leasesAPI leasesapi.LeasesClient
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir()}
	w.open()
	t.Cleanup(func() { w.stop() })
	return w
}

// open opens the rooms in root, as the node does.
func (w *world) open() {
	t := w.t
	t.Helper()
	ctx := context.Background()
	log := slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	db, err := kv.Open(filepath.Join(w.root, "db"))
	must(err)
	w.blobs, err = blob.Open(ctx, filepath.Join(w.root, "blobs"), log)
	must(err)
	w.events = &told{}
	teller := content.Teller{Events: w.events}
	w.leases, err = lease.Open(lease.Config{DB: db, Freed: func(ctx context.Context) error { _, err := w.images.Collect(ctx); return err }, Log: log})
	must(err)
	w.content, err = rooms.Open(rooms.Config{
		DB: db, Blobs: w.blobs, Leases: w.leases, Namespaces: []string{spec.DefaultNamespace},
		Created: teller.ContentCreated, Deleted: teller.ContentDeleted, Log: log,
	})
	must(err)
	if w.layers == nil {
		w.layers = fakesnapshot.New()
	}
	w.images, err = image.Open(ctx, image.Config{
		DB: db, Blobs: w.blobs, Snapshots: w.layers, Remote: remote.Config{Log: log}, Freed: func() {},
		Content: w.content, Leases: w.leases, Named: teller.ImageNamed, Log: log,
	})
	must(err)
	w.content.Natives = w.images
	w.leases.Own(w.content)
	w.leases.Own(w.images.Owner())
	w.service = content.New(content.Config{Content: w.content, Images: w.images, Leases: w.leases})

	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(wire.MaxMessage), grpc.MaxSendMsgSize(wire.MaxMessage))
	w.service.Register(server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:berth", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessage), grpc.MaxCallSendMsgSize(wire.MaxMessage)))
	must(err)
	w.contents, w.names, w.leasesAPI = contentapi.NewContentClient(conn), imagesapi.NewImagesClient(conn), leasesapi.NewLeasesClient(conn)
	w.store, w.manager = contentproxy.NewContentStore(w.contents), leasesproxy.NewLeaseManager(w.leasesAPI)
	w.stop = func() {
		_ = conn.Close()
		server.Stop()
		serving.Wait()
		_ = w.images.Close()
		_ = w.blobs.Close()
		_ = db.Close()
	}
}

// restart ends the node and opens it again.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.open()
}

func in(namespace string) context.Context {
	return namespaces.WithNamespace(context.Background(), namespace)
}

func leased(ctx context.Context, lease string) context.Context { return leases.WithLease(ctx, lease) }

// told remembers what was published.
type told struct {
	mu  sync.Mutex
	all []event
}

type event struct {
	namespace, topic string
	message          proto.Message
}

func (p *told) Publish(_ context.Context, namespace, topic string, message proto.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, event{namespace, topic, message})
}

func (p *told) topics() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, e := range p.all {
		all = append(all, e.namespace+e.topic)
	}
	return all
}

// soon fails unless ok becomes true.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not within 5 s:", what)
		}
	}
}
