package content

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/lease"
)

// Items implements lease.Owner.
func (s *Set) Items(ctx context.Context, fn func(lease.Item)) error {
	var all []lease.Item
	for _, namespace := range s.Namespaces {
		if !s.hasNatives(namespace) {
			continue
		}
		err := s.Natives.EachPart(ctx, namespace, func(i Info) {
			all = append(all, lease.Item{Namespace: namespace, Resource: contentOf(i.Digest), Labels: i.Labels, Root: true})
		})
		if err != nil {
			return err
		}
	}
	natives := len(all)
	s.mu.Lock()
	for namespace, space := range s.spaces {
		for d, info := range space {
			all = append(all, lease.Item{Namespace: namespace, Resource: contentOf(d), Labels: info.Labels})
		}
	}
	for key, in := range s.ingests {
		item := lease.Item{Namespace: key.namespace, Resource: ingestOf(key.ref), Until: in.Until}
		if in.writing {
			item.Root = true
		}
		if in.Shared != "" {
			item.Refs = []lease.Resource{contentOf(in.Shared)}
		}
		all = append(all, item)
	}
	s.mu.Unlock()
	recorded := map[resource]bool{}
	for _, i := range all[natives:] {
		recorded[resource{i.Namespace, i.Resource}] = true
	}
	natively := slices.DeleteFunc(all[:natives:natives], func(i lease.Item) bool { return recorded[resource{i.Namespace, i.Resource}] })
	for _, list := range [][]lease.Item{natively, all[natives:]} {
		for _, i := range list {
			fn(i)
		}
	}
	return nil
}

// Remove implements lease.Owner.
func (s *Set) Remove(_ context.Context, namespace string, r lease.Resource) error {
	if r.Kind == lease.Ingests {
		return s.abort(namespace, r.ID)
	}
	d := digest.Digest(r.ID)
	defer s.locks.lock(resource{namespace, r})()
	if _, ok := s.recorded(namespace, d); !ok {
		return errs.New(errs.NotFound, "content %s is gone", d)
	}
	s.DB.Later(func(tx *kv.Tx) error { return tx.Delete(bucket, record(namespace, d)) })
	s.mu.Lock()
	s.take(namespace, d)
	s.mu.Unlock()
	return nil
}

func contentOf(d digest.Digest) lease.Resource {
	return lease.Resource{Kind: lease.Content, ID: d.String()}
}

func ingestOf(ref string) lease.Resource { return lease.Resource{Kind: lease.Ingests, ID: ref} }

// aDay is how long an ingest that no lease holds may stay.
const aDay = 24 * time.Hour
