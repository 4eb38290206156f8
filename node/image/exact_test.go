package image_test

import (
	"testing"

	"berth/base/errs"
	"berth/image/registrytest"
	"berth/node/image"
	"berth/node/snapshot"
	"berth/spec"
)

// A store may be unable to write one layer's tar; what was committed here is
// then written as it was.
func TestPushOfCommitWithoutTar(t *testing.T) {
	one, _ := sample(t)
	n, r := newNode(t, offers, follows(image.Drop)), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	made := n.change(n.pull(r.Host()+"/one:v1"), spec.CommitRequest{Reference: r.Host() + "/mine:v1"})
	top, err := n.set.Chain(t.Context(), made.ID)
	n.must(err)
	n.offering().refuse = map[snapshot.Key]error{top: errs.New(errs.Unsupported, "no recipe")}
	n.must(n.set.Push(t.Context(), spec.PushRequest{Reference: r.Host() + "/mine:v1"}, nil))
	if got := newNode(t).pull(r.Host() + "/mine:v1"); got.Manifest != made.Manifest {
		t.Errorf("pulled back %s, want %s", got.Manifest, made.Manifest)
	}
}

// Who waits for the reading alone is told when it is over.
func TestCommitTellsWhenAllIsRead(t *testing.T) {
	one, _ := sample(t)
	n, r := newNode(t, offers), registrytest.New(t)
	r.Push(t, "one", "v1", one)
	base := n.pull(r.Host() + "/one:v1")
	top, err := n.set.Chain(t.Context(), base.ID)
	n.must(err)
	_, err = n.snapshots.Prepare(t.Context(), "container", top, nil)
	n.must(err)
	var told int
	made, err := n.set.Commit(t.Context(), base, "container", base.Config, spec.CommitRequest{}, func() {
		if told++; len(n.notesOf("commit")) != 0 {
			t.Error("told only when the image was there")
		}
	})
	n.must(err)
	if told != 1 || len(made.Layers) != 4 {
		t.Errorf("told %d times; %d layers", told, len(made.Layers))
	}
}
