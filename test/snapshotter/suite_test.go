package snapshotter

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth/test/machine"
)

// dial is containerd's own client of a snapshotter.
func dial(t testing.TB, socket string) (snapshots.Snapshotter, *grpc.ClientConn) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	machine.Must(t, err)
	return proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "berth"), conn
}

// TestSuite is containerd's suite against the program, on each driver and the
// file system that it needs: mounts that one process describes are made by
// another. The suite knows by a name what a snapshotter cannot do: overlayfs
// renames no folder of a lower layer.
func TestSuite(t *testing.T) {
	machine.Need(t)
	for _, rung := range []struct {
		driver, knownAs string
		mkfs            []string
	}{
		{"lcfs", "overlayfs", nil},
		{"overlay", "overlayfs", nil},
		{"btrfs", "btrfs", []string{"mkfs.btrfs", "-q"}},
		{"reflink", "native", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}},
	} {
		t.Run(rung.driver, func(t *testing.T) {
			disk := ""
			if rung.mkfs != nil {
				disk = newDisk(t, rung.mkfs...)
			}
			testsuite.SnapshotterSuite(t, rung.knownAs, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				if disk != "" {
					root = filepath.Join(disk, filepath.Base(filepath.Dir(root)))
				}
				d := newSnapshotter(t, root, rung.driver)
				s, conn := dial(t, d.Socket)
				return s, func() error {
					end(t, d)
					machine.Unmount(t, root) // the suite leaves its snapshots
					return conn.Close()
				}, nil
			})
		})
	}
}

// newDisk mounts a file system of its own in a file.
func newDisk(t *testing.T, mkfs ...string) (dir string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	machine.Must(t, os.WriteFile(file, nil, 0o600))
	machine.Must(t, os.Truncate(file, 2<<30))
	dir = t.TempDir()
	for _, argv := range [][]string{append(mkfs, file), {"mount", "-o", "loop", file, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%q: %v\n%s", argv, err, out)
			}
			t.Skipf("skipped: %q: %v\n%s", argv, err, out)
		}
	}
	t.Cleanup(func() { machine.Must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}
