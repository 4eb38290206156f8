package snapshotter

import (
	"context"
	"errors"
	"syscall"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// dial is containerd's own client of a snapshotter.
func dial(t testing.TB, socket string) (snapshots.Snapshotter, *grpc.ClientConn) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	return proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "berth"), conn
}

// TestSuite is containerd's suite against the program: mounts that one process
// describes are made by another.
func TestSuite(t *testing.T) {
	needRoot(t)
	for _, rung := range rungs {
		t.Run(rung.driver, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, rung.knownAs, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				d := newSnapshotter(t, root, rung.driver)
				s, conn := dial(t, d.socket)
				return s, func() error { return errors.Join(conn.Close(), d.end(syscall.SIGTERM)) }, nil
			})
		})
	}
}
