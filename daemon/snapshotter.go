package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	health_v1 "google.golang.org/grpc/health/grpc_health_v1"

	"berth/base/errs"
	"berth/base/group"
	"berth/base/kv"
	snapshotface "berth/face/containerd/snapshots"
	"berth/node/snapshot/rootfs"
)

// Where a snapshotter keeps its things unless it is told otherwise. A node of
// the same machine has a store of its own.
const (
	DefaultSnapshotterRoot   = "/var/lib/berth-snapshotter"
	DefaultSnapshotterSocket = "/run/berth/snapshotter.sock"
)

// SnapshotterConfig says how a snapshotter runs.
type SnapshotterConfig struct {
	Root   string // durable state
	Socket string // where containerd finds it
	Driver string // of the store; the best that works when empty
	Sync   bool   // a commit is answered once its layer would survive a loss of power

	LogLevel  string
	LogFormat string
	Log       io.Writer
}

// maxMessage is what containerd allows a message of its protocol to be.
const maxMessage = 16 << 20

// RunSnapshotter serves the layer store to a containerd until ctx is done.
// What is mounted stays mounted, and another snapshotter on the same root goes
// on where this one ended, however it ended.
func RunSnapshotter(ctx context.Context, c SnapshotterConfig) (err error) {
	log, err := newLogger(c.Log, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	service, closeStore, err := openSnapshotter(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStore()) }()
	listener, err := listen(ctx, c.Socket, "root", log)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.UnaryInterceptor(logCalls(log)))
	service.Register(server)
	health_v1.RegisterHealthServer(server, health.NewServer())
	log.InfoContext(ctx, "snapshotter is serving", "socket", c.Socket, "root", c.Root)
	g := group.New(ctx)
	g.Go("snapshotter", func(ctx context.Context) error { return serveGRPC(ctx, listener, server) })
	if err := tellSystemd(ctx, "READY=1"); err != nil {
		log.WarnContext(ctx, "systemd was not told that the snapshotter is ready", "error", err)
	}
	return g.Wait()
}

// openSnapshotter opens the store of c.Root and containerd's view of it.
func openSnapshotter(ctx context.Context, c SnapshotterConfig, log *slog.Logger) (service *snapshotface.Service, closeStore func() error, err error) {
	for _, dir := range []string{c.Root, filepath.Join(c.Root, "db")} {
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // containers reach their trees through it
			return nil, nil, errs.New(errs.Denied, "make %s: %w; berth snapshotter runs as root, or takes a folder of its own by --root", dir, err)
		}
	}
	db, err := kv.Open(filepath.Join(c.Root, "db", "berth.db"))
	if err != nil {
		return nil, nil, err
	}
	store, chosen, err := newLadder(db).openStore(ctx, c.Driver, storeConfig{Dir: c.Root, DB: db, Log: log.With("room", "snapshot")})
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	closeStore = func() error { return errors.Join(store.Close(), db.Close()) }
	config := snapshotface.Config{Store: store, DB: db, Sync: c.Sync, Log: log.With("room", "containerd")}
	if chosen.bucket == "lcfs" { // bodies lie beside its layers, where containerd does not look for them
		config.Trees, err = rootfs.Open(ctx, filepath.Join(c.Root, "trees"), store)
	}
	if err == nil {
		service, err = snapshotface.Open(ctx, config)
	}
	if err != nil {
		return nil, nil, errors.Join(err, closeStore())
	}
	return service, closeStore, nil
}

// logCalls lets an operator see what containerd asks for, and how long it took.
func logCalls(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		begun := time.Now()
		answer, err := handle(ctx, request)
		log.DebugContext(ctx, "call", "method", path.Base(info.FullMethod), "request", request, "took", time.Since(begun), "error", err)
		return answer, err
	}
}

// serveGRPC serves until ctx is done; what is under way then gets some seconds
// to finish.
func serveGRPC(ctx context.Context, listener net.Listener, server *grpc.Server) error {
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		patience := time.AfterFunc(5*time.Second, server.Stop)
		defer patience.Stop()
		server.GracefulStop()
	})()
	err := server.Serve(listener)
	if ctx.Err() != nil {
		<-stopped
		return ctx.Err()
	}
	return err
}

// tellSystemd reports the state of a service of Type=notify; elsewhere it does
// nothing.
func tellSystemd(ctx context.Context, state string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unixgram", socket)
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer conn.Close()
	_, err = io.WriteString(conn, state)
	return err
}
