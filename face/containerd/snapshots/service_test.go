package snapshots_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"berth/base/kv"
	face "berth/face/containerd/snapshots"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
)

// mountable lets the fake answer Mounts.
type mountable struct{ *fakesnapshot.Store }

func (m mountable) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	info, err := m.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	return []snapshot.Mount{{Type: "fake", Source: string(key), Options: []string{"parent=" + string(info.Parent), "lowerdir=/layers/1:/layers/2::/bodies"}}}, nil
}

// trees remembers which trees are mounted.
type trees struct {
	mu      sync.Mutex
	mounted map[snapshot.Key]bool
}

func (r *trees) Mounts(_ context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mounted[key] = true
	return []snapshot.Mount{{Type: "bind", Source: "/trees/" + string(key)}}, nil
}

func (r *trees) Remove(_ context.Context, key snapshot.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mounted, key)
	return nil
}

// bench is a service on a fake store that can be restarted.
type bench struct {
	store mountable
	trees face.Trees
	path  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{store: mountable{fakesnapshot.New()}, path: filepath.Join(t.TempDir(), "db")}
}

// start opens the service and returns containerd's client for each of the
// snapshotters named. end closes it all.
func (b *bench) start(t *testing.T, names ...string) (clients []snapshots.Snapshotter, end func()) {
	t.Helper()
	db, err := kv.Open(b.path)
	must(t, err)
	service, err := face.Open(t.Context(), face.Config{Store: b.store, Trees: b.trees, DB: db, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, service)
	listener := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	must(t, err)
	for _, name := range names {
		clients = append(clients, proxy.NewSnapshotter(api.NewSnapshotsClient(conn), name))
	}
	end = sync.OnceFunc(func() {
		_ = conn.Close()
		server.Stop()
		serving.Wait()
		must(t, db.Close())
	})
	t.Cleanup(end)
	return clients, end
}

func (b *bench) one(t *testing.T) snapshots.Snapshotter {
	t.Helper()
	clients, _ := b.start(t, "berth")
	return clients[0]
}

// keys lists what is in the store, those committed only.
func (b *bench) keys(t *testing.T, kind snapshot.Kind) (keys []snapshot.Key) {
	t.Helper()
	must(t, b.store.Walk(t.Context(), func(info snapshot.Info) error {
		if info.Kind == kind {
			keys = append(keys, info.Key)
		}
		return nil
	}))
	return keys
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, s snapshots.Snapshotter, filters ...string) (names []string) {
	t.Helper()
	must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}, filters...))
	return names
}

func prepare(t *testing.T, s snapshots.Snapshotter, key, parent string, opts ...snapshots.Opt) {
	t.Helper()
	_, err := s.Prepare(t.Context(), key, parent, opts...)
	must(t, err)
}

func layer(t *testing.T, s snapshots.Snapshotter, name, parent string, opts ...snapshots.Opt) {
	t.Helper()
	prepare(t, s, name+" being made", parent, opts...)
	must(t, s.Commit(t.Context(), name, name+" being made", opts...))
}

// chain is a chain ID made of one digit, ref the label that says so.
func chain(digit int) string { return "sha256:" + strings.Repeat(fmt.Sprint(digit), 64) }

func ref(digit int) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain(digit)})
}
