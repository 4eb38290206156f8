package image_test

import (
	"testing"

	"berth/image/registrytest"
	"berth/node/image"
	"berth/spec"
)

func (n *node) usage() image.Usage {
	n.Helper()
	u, err := n.set.DiskUsage(n.Context())
	n.must(err)
	return u
}

// of finds an image in a usage.
func of(u image.Usage, i spec.Image) spec.ImageUsage {
	for _, one := range u.List {
		if one.ID == i.ID {
			return one
		}
	}
	return spec.ImageUsage{}
}

// What is said to be an image's own is what its removal gives back.
func TestUsageAddsUp(t *testing.T) {
	n, r := newNode(t), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "one", "v1", one)
	r.Push(t, "two", "v1", two)
	a, b := n.pull(r.Host()+"/one:v1"), n.pull(r.Host()+"/two:v1")
	u := n.usage()
	first, second := of(u, a), of(u, b)
	if first.Shared == 0 || first.Shared != second.Shared || first.Own == 0 || first.Blobs == 0 || len(first.Names) != 1 {
		t.Errorf("%+v\n%+v", first, second)
	}
	if sum := first.Own + second.Own + first.Shared; sum != u.Images.Size+u.Blobs.Size {
		t.Errorf("the images sum up to %d, the totals to %d", sum, u.Images.Size+u.Blobs.Size)
	}
	if u.Images.Reclaimable != u.Images.Size || u.Blobs.Reclaimable != u.Blobs.Size {
		t.Errorf("of unused images %+v", u)
	}
	if u.Store.Layers != u.Images.Size || !u.Estimated {
		t.Errorf("%+v", u.Store)
	}
	_, err := n.set.Remove(t.Context(), a.ID, false)
	n.must(err)
	after := n.usage()
	if freed := u.Images.Size + u.Blobs.Size - after.Images.Size - after.Blobs.Size; freed != first.Own {
		t.Errorf("%d bytes were freed, %d were said to be its own", freed, first.Own)
	}
	if left := of(after, b); left.Shared != 0 || left.Own != second.Own+second.Shared {
		t.Errorf("the other image has %+v, had %+v", left, second)
	}
}
