package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Reconcile removes what belongs to no container in live: attachments with
// their links, addresses, ports and rules; namespaces; and links and bridges
// that a crash left without a record. What cannot be removed is said, and
// the rest removed still.
func (s *Set) Reconcile(ctx context.Context, live map[string]bool) error {
	var failed error
	for _, id := range s.Claims() {
		if !live[id] {
			failed = errors.Join(failed, s.Detach(ctx, id))
		}
	}
	files, err := os.ReadDir(filepath.Join(s.cfg.State, "netns"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		failed = errors.Join(failed, err)
	}
	for _, file := range files {
		if !live[file.Name()] {
			failed = errors.Join(failed, s.RemoveNamespace(ctx, file.Name()))
		}
	}
	return errors.Join(failed, s.sweepLinks())
}

// sweepLinks removes our bridges that no network has, and the ports of our
// bridges that no attachment has.
func (s *Set) sweepLinks() error {
	s.change.Lock()
	defer s.change.Unlock()
	links, err := s.host.links.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	known, bridges := map[string]bool{}, map[int]bool{}
	s.mu.Lock()
	for _, n := range s.networks {
		known[n.bridge] = true
		bridges[n.index] = true
		// A link is claimed from the moment its addresses are leased, which
		// is before there is a record of it.
		for _, held := range n.leases {
			known[held.link] = true
		}
	}
	s.mu.Unlock()
	var failed error
	for _, link := range links {
		attrs := link.Attrs()
		ours := link.Type() == "bridge" && attrs.Alias == s.alias() ||
			link.Type() == "veth" && bridges[attrs.MasterIndex] && len(attrs.Name) > len(vethPrefix) && attrs.Name[:len(vethPrefix)] == vethPrefix
		if ours && !known[attrs.Name] {
			failed = errors.Join(failed, s.deleteLink(attrs.Name))
		}
	}
	return failed
}

// Purge removes everything of this node from the host: bridges, rules and
// namespaces. Only for a node that is being taken down for good.
func (s *Set) Purge(ctx context.Context) error {
	failed := s.Reconcile(ctx, nil)
	s.change.Lock()
	defer s.change.Unlock()
	for _, n := range s.byName() {
		failed = errors.Join(failed, s.closeDoor(ctx, n), s.lower(n))
	}
	return errors.Join(failed, s.firewall.remove())
}
