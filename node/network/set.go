package network

import (
	"context"

	"berth/base/errs"
	"berth/spec"
)

// Set is the networks of a node.
type Set struct{ cfg Config }

var errSoon = errs.New(errs.Unsupported, "not built yet")

// Open reads the records and builds what they say: bridges, rules, held ports.
func Open(ctx context.Context, cfg Config) (*Set, error) { return &Set{cfg}, nil }

// Run answers DNS and serves held ports until ctx is done.
func (s *Set) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Close lets go of sockets; what is built stays, and works on.
func (s *Set) Close() error { return nil }

// NewNamespace makes a network namespace and returns its path.
func (s *Set) NewNamespace(ctx context.Context, id string) (string, error) { return "", errSoon }

// RemoveNamespace removes a namespace; one that is not there is no error.
func (s *Set) RemoveNamespace(ctx context.Context, id string) error { return errSoon }

// Attach puts a container on the networks it chose and publishes its ports.
func (s *Set) Attach(ctx context.Context, req AttachRequest) (Attachment, error) {
	return Attachment{}, errSoon
}

// Detach takes a container off all networks; none is no error.
func (s *Set) Detach(ctx context.Context, container string) error { return errSoon }

// Connect puts an attached container on one more network.
func (s *Set) Connect(ctx context.Context, req AttachRequest, want spec.EndpointConfig) (spec.Endpoint, error) {
	return spec.Endpoint{}, errSoon
}

// Disconnect takes a container off one network.
func (s *Set) Disconnect(ctx context.Context, container, network string) error { return errSoon }

// Rename changes the name by which others find a container.
func (s *Set) Rename(container, name string) {}

// Attached says how a container is reached now.
func (s *Set) Attached(container string) (Attachment, bool) { return Attachment{}, false }

// ResolvConf is the /etc/resolv.conf of a container.
func (s *Set) ResolvConf(choice spec.NetworkChoice, endpoints []spec.Endpoint) []byte { return nil }

// Hosts is the /etc/hosts of a container.
func (s *Set) Hosts(choice spec.NetworkChoice, hostname, domainname string, endpoints []spec.Endpoint) []byte {
	return nil
}

// Create makes a network.
func (s *Set) Create(ctx context.Context, cfg spec.NetworkConfig) (spec.Network, error) {
	return spec.Network{}, errSoon
}

// Get finds a network by name, id or short id.
func (s *Set) Get(ref string) (spec.Network, error) { return spec.Network{}, errSoon }

// List gives the networks that fit: name, id, driver, label, type.
func (s *Set) List(filter spec.Filter) ([]spec.Network, error) { return nil, errSoon }

// Remove removes a network that nobody is on.
func (s *Set) Remove(ctx context.Context, ref string) error { return errSoon }

// Prune removes user-defined networks that nobody is on.
func (s *Set) Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{}, errSoon
}

// Claims lists the containers that hold something here.
func (s *Set) Claims() []string { return nil }

// Reconcile removes what belongs to no container in live: namespaces, links,
// addresses, rules.
func (s *Set) Reconcile(ctx context.Context, live map[string]bool) error { return errSoon }
