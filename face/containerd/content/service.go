// Package content answers containerd's services of bits and of what keeps
// them: content, images and leases, on the rooms node/content, node/image and
// node/lease. It also gives the rest of the face these rooms as containerd's
// own Go interfaces (see Stores), and tells clients what happens in them (see
// Teller).
package content

import (
	"context"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"berth/base/errs"
	"berth/image/catalog"
	"berth/node/content"
	"berth/node/image"
	"berth/node/lease"
)

// Names are the images of namespaces, by their names.
type Names interface {
	Name(namespace, name string) (catalog.Record, error)
	Names(namespace string) []catalog.Record
	CreateName(ctx context.Context, namespace, leased string, rec catalog.Record) (catalog.Record, error)
	UpdateName(ctx context.Context, namespace, leased, name string, change func(catalog.Record) (catalog.Record, error)) (catalog.Record, error)
	DeleteName(ctx context.Context, namespace, name string, target digest.Digest) error
}

var _ Names = (*image.Set)(nil)

// Config says what the services are made of.
type Config struct {
	Content *content.Set
	Images  Names
	Leases  *lease.Set
}

// Service is the three services.
type Service struct{ Config }

// New returns the services.
func New(c Config) *Service { return &Service{c} }

// Register adds them to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	contentapi.RegisterContentServer(r, &contents{Config: s.Config})
	imagesapi.RegisterImagesServer(r, &images{Config: s.Config})
	leasesapi.RegisterLeasesServer(r, &leases{Config: s.Config})
}

// digestOf reads a digest of a request.
func digestOf(text string) (digest.Digest, error) {
	d, err := digest.Parse(text)
	if err != nil {
		return "", errs.New(errs.Invalid, "%.120q failed validation: %w", text, err)
	}
	return d, nil
}
