package content_test

import (
	"context"
	"sync/atomic"
	"testing"

	cdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"berth/face/containerd/content"
)

// containerd's own suites, through its clients and our services.
func TestSuite(t *testing.T) {
	var count atomic.Int64
	number := func() string { return string(rune('a'+count.Add(1)/26)) + string(rune('a'+count.Load()%26)) }
	begin := func(store cdcontent.Store, manager leases.Manager) testsuite.StoreInitFn {
		return func(ctx context.Context, _ string) (context.Context, cdcontent.Store, func() error, error) {
			wrap := func(ctx context.Context, _ bool) (context.Context, func(context.Context) error, error) {
				ctx = namespaces.WithNamespace(ctx, testsuite.Name(ctx)+"-"+number())
				l, err := manager.Create(ctx, leases.WithRandomID())
				if err != nil {
					return nil, nil, err
				}
				return leases.WithLease(ctx, l.ID), func(ctx context.Context) error { return manager.Delete(ctx, l) }, nil
			}
			ctx = testsuite.SetContextWrapper(ctx, func(ctx context.Context, shared bool) (context.Context, func(context.Context) error, error) {
				if testsuite.Name(ctx) == "" {
					ctx = namespaces.WithNamespace(ctx, "other-"+number())
					return ctx, func(context.Context) error { return nil }, nil
				}
				return wrap(ctx, shared)
			})
			return ctx, store, func() error { return nil }, nil
		}
	}
	t.Run("socket", func(t *testing.T) {
		w := newWorld(t)
		testsuite.ContentSuite(t, "berth", begin(w.store, w.manager))
		testsuite.ContentCrossNSSharedSuite(t, "berth", begin(w.store, w.manager))
	})
	t.Run("inside", func(t *testing.T) {
		stores := content.NewStores(newWorld(t).service.Config) // a world of its own: it writes the same blobs
		testsuite.ContentSuite(t, "inside", begin(stores.Content, stores.Leases))
		testsuite.ContentCrossNSSharedSuite(t, "inside", begin(stores.Content, stores.Leases))
	})
}
