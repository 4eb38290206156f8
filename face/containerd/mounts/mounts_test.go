package mounts_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/services/mounts/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"berth/base/kv"
	"berth/face/containerd/mounts"
	"berth/node/lease"
)

func open(t *testing.T, dir string) (client mount.Manager, leases *lease.Set, end func()) {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	leases, err = lease.Open(lease.Config{DB: db, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	service, err := mounts.Open(t.Context(), dir, leases, slog.New(slog.DiscardHandler))
	must(t, err)
	leases.Own(service)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return handle(namespaces.WithNamespace(ctx, "default"), r)
	}), grpc.StreamInterceptor(func(s any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		return handle(s, spaced{stream})
	}))
	service.Register(server)
	listener := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:mounts", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	must(t, err)
	end = sync.OnceFunc(func() {
		_ = conn.Close()
		server.Stop()
		serving.Wait()
		must(t, errors.Join(service.Close(), db.Close()))
	})
	t.Cleanup(end)
	return proxy.NewMountManager(api.NewMountsClient(conn)), leases, end
}

type spaced struct{ grpc.ServerStream }

func (s spaced) Context() context.Context {
	return namespaces.WithNamespace(s.ServerStream.Context(), "default")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What a client can mount by itself it is to mount by itself.
func TestLeftToTheClient(t *testing.T) {
	client, _, _ := open(t, t.TempDir())
	_, err := client.Activate(t.Context(), "plain", []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("activated a bind mount: %v", err)
	}
	if _, err := client.Info(t.Context(), "plain"); !errdefs.IsNotFound(err) {
		t.Errorf("info of none: %v", err)
	}
}

// A temporary mount is made, found again by the next process, and taken down.
func TestTemporary(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, tree := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(tree, "file"), []byte("body"), 0o600))
	client, _, end := open(t, dir)
	info, err := client.Activate(t.Context(), "temp", []mount.Mount{{Type: "bind", Source: tree, Options: []string{"rbind", "ro"}}}, mount.WithTemporary)
	must(t, err)
	if len(info.System) != 1 || len(info.Active) == 0 {
		t.Fatalf("active %v, left to mount %v", info.Active, info.System)
	}
	target := info.Active[0].MountPoint
	if body, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(body) != "body" {
		t.Errorf("read %q, %v", body, err)
	}
	if _, err := client.Activate(t.Context(), "temp", info.System, mount.WithTemporary); !errdefs.IsAlreadyExists(err) {
		t.Errorf("activated twice: %v", err)
	}
	end()
	client, _, _ = open(t, dir)
	all, err := client.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Name != "temp" {
		t.Errorf("after a restart: %v, %v", all, err)
	}
	must(t, client.Deactivate(t.Context(), "temp"))
	if _, err := os.Stat(filepath.Join(target, "file")); err == nil {
		t.Error("it is still mounted")
	}
}

// What is active goes with its lease, also if another process has made it.
func TestLeased(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, tree := t.TempDir(), t.TempDir()
	client, all, end := open(t, dir)
	_, err := all.Create(t.Context(), "default", "l", nil)
	must(t, err)
	bind := []mount.Mount{{Type: "bind", Source: tree, Options: []string{"rbind"}}}
	ctx := leases.WithLease(t.Context(), "l")
	info, err := client.Activate(ctx, "leased", bind, mount.WithTemporary, mount.WithLabels(map[string]string{"mine": "1"}))
	must(t, err)
	if len(info.Labels) != 1 {
		t.Errorf("labels %v", info.Labels)
	}
	must(t, all.Collect(t.Context()))
	end()
	client, all, _ = open(t, dir)
	must(t, all.Collect(t.Context()))
	if _, err := client.Info(t.Context(), "leased"); err != nil {
		t.Errorf("gone before its lease: %v", err)
	}
	must(t, all.Delete(t.Context(), "default", "l"))
	must(t, all.Collect(t.Context()))
	if _, err := client.Info(t.Context(), "leased"); !errdefs.IsNotFound(err) {
		t.Errorf("it stays when its lease has gone: %v", err)
	}
}

// Of a container's root file system only that is made here which needs more
// than mount(2); it goes when the task has gone.
func TestForTask(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	service := newService(t, t.TempDir())
	ctx := namespaces.WithNamespace(t.Context(), "default")
	plain := []*types.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}}
	left, err := service.ForTask(ctx, "plain", plain)
	if err != nil || len(left) != 1 || left[0] != plain[0] {
		t.Errorf("of a bind mount there is left %v, %v", left, err)
	}
	must(t, service.Release(t.Context(), "default", "plain"))
	layered := append(plain, &types.Mount{Type: "format/bind", Source: "{{ mount 0 }}/inner", Options: []string{"rbind"}}) //nolint:gocritic // another one
	for range 2 {                                                                                                          // a second task finds what the first had
		left, err = service.ForTask(ctx, "layered", layered)
		if err != nil || len(left) != 1 || left[0].Type != "bind" || filepath.Base(left[0].Source) != "inner" {
			t.Fatalf("there is left %v, %v", left, err)
		}
	}
	made := filepath.Dir(left[0].Source)
	must(t, os.WriteFile(filepath.Join(plain[0].Source, "file"), nil, 0o600))
	if _, err := os.Stat(filepath.Join(made, "file")); err != nil {
		t.Errorf("what the second stands on is not mounted: %v", err)
	}
	must(t, service.Release(t.Context(), "default", "layered"))
	if _, err := os.Stat(filepath.Join(made, "file")); err == nil {
		t.Error("it is still mounted")
	}
}

func newService(t *testing.T, dir string) *mounts.Service {
	t.Helper()
	db, err := kv.Open(filepath.Join(dir, "db"))
	must(t, err)
	leases, err := lease.Open(lease.Config{DB: db, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	service, err := mounts.Open(t.Context(), dir, leases, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(service.Close(), db.Close())) })
	return service
}
