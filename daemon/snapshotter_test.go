package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"berth/base/errs"
)

// suiteRungs are the ways to keep layers that work on any file system, with
// the name under which containerd's suite knows what they cannot do: overlayfs
// renames no folder of a lower layer.
var suiteRungs = []struct{ driver, knownAs string }{
	{"lcfs", "overlayfs"},
	{"lcfs-loop", "overlayfs"},
	{"overlay", "overlayfs"},
	{"copy", "native"},
}

// TestContainerdSuite runs containerd's own suite for snapshotters through its
// own client.
func TestContainerdSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for _, rung := range suiteRungs {
		t.Run(rung.driver, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, rung.knownAs, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				s, end, err := inProcess(ctx, SnapshotterConfig{Root: root, Driver: rung.driver})
				return s, func() error { return errors.Join(end(), takeDown(root)) }, err
			})
		})
	}
}

// takeDown unmounts what the suite leaves of its snapshots.
func takeDown(root string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if target := strings.Fields(line)[1]; strings.HasPrefix(target, root+"/") {
			err = errors.Join(err, unix.Unmount(target, unix.MNT_DETACH))
		}
	}
	return err
}

// inProcess is a snapshotter behind gRPC, without a socket.
func inProcess(ctx context.Context, c SnapshotterConfig) (snapshots.Snapshotter, func() error, error) {
	service, closeStore, err := openSnapshotter(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	service.Register(server)
	listener := bufconn.Listen(1 << 20)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:snapshotter",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		return nil, nil, err
	}
	end := func() error {
		err := conn.Close()
		server.Stop()
		serving.Wait()
		return errors.Join(err, closeStore())
	}
	return proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "berth"), end, nil
}

// A snapshotter takes its root for itself, wants a driver that there is, and
// tells systemd when it serves.
func TestSnapshotterStarts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	c := SnapshotterConfig{Root: filepath.Join(dir, "root"), Socket: filepath.Join(dir, "s"), Driver: "nosuch", Log: io.Discard}
	if err := RunSnapshotter(t.Context(), c); !errors.Is(err, errs.Invalid) {
		t.Errorf("a driver that there is not: %v", err)
	}
	c.Driver = ""
	notified := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notified})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", notified)
	ctx, stop := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := RunSnapshotter(ctx, c); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	text := make([]byte, 64)
	n, err := conn.Read(text)
	if err != nil || string(text[:n]) != "READY=1" {
		t.Errorf("systemd was told %q, %v", text[:n], err)
	}
	second := c
	second.Socket += "2"
	if err := RunSnapshotter(t.Context(), second); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second one on the same root: %v", err)
	}
	stop()
	serving.Wait()
}
