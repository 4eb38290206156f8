package content

import (
	"context"

	"github.com/containerd/containerd/api/events"
	"github.com/opencontainers/go-digest"

	"berth/face/containerd/wire"
	"berth/image/catalog"
	"berth/node/content"
	"berth/node/image"
)

// Teller publishes what happens to content and images, whoever did it.
type Teller struct{ Events wire.Publisher }

// ContentCreated is for content.Config.Created.
func (t Teller) ContentCreated(ctx context.Context, namespace string, info content.Info) {
	t.Events.Publish(ctx, namespace, "/content/create", &events.ContentCreate{Digest: info.Digest.String(), Size: info.Size})
}

// ContentDeleted is for content.Config.Deleted.
func (t Teller) ContentDeleted(ctx context.Context, namespace string, d digest.Digest) {
	t.Events.Publish(ctx, namespace, "/content/delete", &events.ContentDelete{Digest: d.String()})
}

// ImageNamed is for image.Config.Named.
func (t Teller) ImageNamed(ctx context.Context, namespace string, what image.Change, rec catalog.Record) {
	switch what {
	case image.NameCreated:
		t.Events.Publish(ctx, namespace, "/images/create", &events.ImageCreate{Name: rec.Name, Labels: rec.Labels})
	case image.NameUpdated:
		t.Events.Publish(ctx, namespace, "/images/update", &events.ImageUpdate{Name: rec.Name, Labels: rec.Labels})
	case image.NameDeleted:
		t.Events.Publish(ctx, namespace, "/images/delete", &events.ImageDelete{Name: rec.Name})
	}
}
