// Package mounts answers containerd's mounts service: a client has mounts made
// on this node that it could not make by itself, and gets back what is left for
// it to mount. The work is done by containerd's own library, which also defines
// what can be asked for. Mounts that any client can make by itself, as those of
// all snapshots here, are left to it: Activate is then Unimplemented.
//
// What is mounted lies below one folder with its records; both are of no use
// after a reboot, so the folder belongs where a reboot empties it. It belongs to
// the lease of the request that asked for it, and goes with it; or else with
// what its labels say that it is for.
package mounts

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/services/mounts/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/manager"
	"github.com/containerd/containerd/v2/core/mount/proxy"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/face/containerd/quiet"
	"berth/face/containerd/wire"
	"berth/node/lease"
)

// Leases says which leases there are.
type Leases interface {
	Get(namespace, id string) (lease.Lease, error)
	Hold(namespace string, resources ...lease.Resource) (release func())
}

// Service is the mounts service. It is the collector's owner of mounts, too.
type Service struct {
	api.UnimplementedMountsServer
	mounts mount.Manager
	leases Leases

	mu     sync.Mutex
	active map[name]map[string]string // their labels, with leaseLabel
}

// name is what a client calls what it has activated.
type name struct{ namespace, name string }

// leaseLabel of what is active holds the lease that it belongs to. Clients are
// not shown it.
const leaseLabel = "berth.lease"

// Open finds again what an earlier process of this boot has mounted below dir,
// and takes down what it left half made.
func Open(ctx context.Context, dir string, leases Leases, log *slog.Logger) (*Service, error) {
	targets := filepath.Join(dir, "t")
	if err := os.MkdirAll(targets, 0o700); err != nil {
		return nil, fmt.Errorf("open mounts of clients: %w", err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "mounts.db"), 0o600, &bbolt.Options{Timeout: time.Second, NoStatistics: true})
	if err != nil {
		return nil, fmt.Errorf("open mounts of clients: %w", err)
	}
	mounts, err := manager.NewManager(db, targets)
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open mounts of clients: %w", err)
	}
	s := &Service{mounts: mounts, leases: leases, active: map[name]map[string]string{}}
	if err := s.load(quiet.Context(ctx, log)); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("open mounts of clients: %w", err)
	}
	return s, nil
}

// Close leaves all as it is.
func (s *Service) Close() error {
	if c, ok := s.mounts.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Register makes the service one of server's.
func (s *Service) Register(server grpc.ServiceRegistrar) { api.RegisterMountsServer(server, s) }

// Activate makes mounts. Unimplemented: the client can do so by itself.
func (s *Service) Activate(ctx context.Context, r *api.ActivateRequest) (*api.ActivateResponse, error) {
	var opts []mount.ActivateOpt
	if r.Temporary {
		opts = append(opts, mount.WithTemporary)
	}
	info, err := s.activate(ctx, r.Name, mount.FromProto(r.Mounts), r.Labels, opts...)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("activate mounts: %w", err))
	}
	return &api.ActivateResponse{Info: described(info)}, nil
}

func (s *Service) activate(ctx context.Context, id string, mounts []mount.Mount, labels map[string]string, opts ...mount.ActivateOpt) (mount.ActivationInfo, error) {
	namespace, err := wire.Namespace(ctx)
	if err != nil {
		return mount.ActivationInfo{}, err
	}
	defer s.leases.Hold(namespace, resource(id))()
	labels = maps.Clone(labels)
	delete(labels, leaseLabel)
	if lease := wire.Lease(ctx); lease != "" {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[leaseLabel] = lease
	}
	info, err := s.mounts.Activate(ctx, id, mounts, append(opts, mount.WithLabels(labels))...)
	if err != nil {
		return mount.ActivationInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active[name{namespace, id}] = labels
	return info, nil
}

// Deactivate takes mounts down.
func (s *Service) Deactivate(ctx context.Context, r *api.DeactivateRequest) (*emptypb.Empty, error) {
	namespace, err := wire.Namespace(ctx)
	if err == nil {
		err = s.deactivate(ctx, name{namespace, r.Name})
	}
	if err != nil {
		return nil, wire.Error(fmt.Errorf("deactivate mounts: %w", err))
	}
	return &emptypb.Empty{}, nil
}

// Info describes what is active under a name.
func (s *Service) Info(ctx context.Context, r *api.InfoRequest) (*api.InfoResponse, error) {
	info, err := s.mounts.Info(ctx, r.Name)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("mounts: %w", err))
	}
	return &api.InfoResponse{Info: described(info)}, nil
}

// Update changes labels.
func (s *Service) Update(ctx context.Context, r *api.UpdateRequest) (*api.UpdateResponse, error) {
	info, err := s.mounts.Update(ctx, proxy.ActivationInfoFromProto(r.Info), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, wire.Error(fmt.Errorf("update mounts: %w", err))
	}
	return &api.UpdateResponse{Info: described(info)}, nil
}

// List sends what is active and passes one of the filters.
func (s *Service) List(r *api.ListRequest, stream api.Mounts_ListServer) error {
	all, err := s.mounts.List(stream.Context(), r.Filters...)
	if err != nil {
		return wire.Error(fmt.Errorf("list mounts: %w", err))
	}
	for _, info := range all {
		if err := stream.Send(&api.ListMessage{Info: described(info)}); err != nil {
			return err
		}
	}
	return nil
}
