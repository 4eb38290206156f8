package snapshots

import (
	"context"
	"strings"
	"time"

	"berth/base/errs"
	"berth/node/lease"
)

// attention is how long a view stays that a client looks at without saying so
// by a lease, as Docker does to see what a container has changed.
const attention = time.Minute

// Items tells the collector of the names of all namespaces.
func (s *Service) Items(ctx context.Context, fn func(lease.Item)) error {
	s.mu.RLock()
	all := make([]*record, 0, len(s.byName))
	for _, rec := range s.byName {
		all = append(all, rec)
	}
	s.mu.RUnlock()
	for _, rec := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !strings.Contains(rec.Space, "/") {
			continue
		}
		namespace, r := rec.name().resource()
		item := lease.Item{Namespace: namespace, Resource: r, Labels: rec.Labels}
		if rec.Loose {
			item.Until = rec.Created.Add(attention)
		}
		if rec.Parent != "" {
			_, parent := rec.parent().resource()
			item.Refs = append(item.Refs, parent)
		}
		fn(item)
	}
	return nil
}

// Collected is the service as the collector sees it.
type Collected struct{ *Service }

// Remove removes a name.
func (c Collected) Remove(ctx context.Context, namespace string, r lease.Resource) error {
	snapshotter, ok := lease.Snapshotter(r.Kind)
	if !ok {
		return errs.New(errs.Invalid, "%s is no snapshotter's", r.Kind)
	}
	return c.remove(ctx, name{namespace + "/" + snapshotter, r.ID})
}
