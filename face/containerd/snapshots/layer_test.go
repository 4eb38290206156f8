package snapshots_test

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"berth/node/snapshot"
)

// unpack does as containerd's unpacker: a layer that is known is not unpacked.
func unpack(t *testing.T, s snapshots.Snapshotter, prefix, parent string, digit int) (name string, known bool) {
	t.Helper()
	key := prefix + "extract " + chain(digit)
	_, err := s.Prepare(t.Context(), key, parent, ref(digit))
	if errdefs.IsAlreadyExists(err) {
		found := names(t, s, fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, chain(digit), parent))
		if len(found) != 1 {
			t.Fatalf("layer %d is known by %q", digit, found)
		}
		return found[0], true
	}
	must(t, err)
	must(t, s.Commit(t.Context(), prefix+chain(digit), key, ref(digit)))
	return prefix + chain(digit), false
}

// A layer is unpacked once: for all namespaces of one containerd, and for
// others, which get names of their own for it.
func TestKnownLayers(t *testing.T) {
	b := newBench(t)
	clients, _ := b.start(t, "berth", "other")
	one, other := clients[0], clients[1]
	base, _ := unpack(t, one, "ns/1/", "", 1)
	top, _ := unpack(t, one, "ns/2/", base, 2)
	for i, parent := range []string{"", base} {
		name, known := unpack(t, one, "second/9/", parent, i+1)
		if want := []string{base, top}[i]; !known || name != want {
			t.Errorf("layer %d in a second namespace: %q, known %v; want %q", i+1, name, known, want)
		}
	}
	otherBase, known := unpack(t, other, "ns/1/", "", 1)
	if !known {
		t.Error("another snapshotter unpacks again")
	}
	otherTop, known := unpack(t, other, "ns/2/", otherBase, 2)
	if again, _ := unpack(t, other, "ns/3/", otherBase, 2); !known || again != otherTop {
		t.Errorf("the name of a shared layer is %q and then %q", otherTop, again)
	}
	if keys := b.keys(t, snapshot.KindCommitted); len(keys) != 2 {
		t.Errorf("the store has %v", keys)
	}
	prepare(t, other, "container", otherTop)

	// Each may go by itself; the last one takes the layer along.
	must(t, one.Remove(t.Context(), top))
	must(t, one.Remove(t.Context(), base))
	if err := other.Remove(t.Context(), otherTop); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a layer under a container went: %v", err)
	}
	must(t, other.Remove(t.Context(), "container"))
	must(t, other.Remove(t.Context(), otherTop))
	must(t, other.Remove(t.Context(), otherBase))
	if keys := b.keys(t, snapshot.KindCommitted); len(keys) != 0 {
		t.Errorf("the store still has %v", keys)
	}
	if _, known := unpack(t, one, "ns/4/", "", 1); known {
		t.Error("a layer that is gone is known")
	}
}

// Two that unpack the same layer at once end up with one.
func TestSameLayerAtOnce(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	prepare(t, s, "a/extract", "", ref(1))
	prepare(t, s, "b/extract", "", ref(1))
	must(t, s.Commit(t.Context(), "a/"+chain(1), "a/extract", ref(1)))
	must(t, s.Commit(t.Context(), "b/"+chain(1), "b/extract", ref(1)))
	if committed, active := b.keys(t, snapshot.KindCommitted), b.keys(t, snapshot.KindActive); len(committed) != 1 || len(active) != 0 {
		t.Errorf("the store has %v and %v", committed, active)
	}
	must(t, s.Remove(t.Context(), "a/"+chain(1)))
	prepare(t, s, "container", "b/"+chain(1))
}

// Who does not say what he unpacks but in the name of his work shares what came
// out of it, and what he made is known to those who say it.
func TestLayersWithoutLabel(t *testing.T) {
	b := newBench(t)
	s := b.one(t)
	for _, namespace := range []string{"one/1/", "two/2/"} {
		prepare(t, s, namespace+"extract-1-ab "+chain(1), "")
		must(t, s.Commit(t.Context(), namespace+chain(1), namespace+"extract-1-ab "+chain(1)))
	}
	if committed, active := b.keys(t, snapshot.KindCommitted), b.keys(t, snapshot.KindActive); len(committed) != 1 || len(active) != 0 {
		t.Errorf("the store has %v and %v", committed, active)
	}
	if _, known := unpack(t, s, "three/3/", "", 1); !known {
		t.Error("the layer is unpacked again")
	}
}

// What only looks like the layer is not taken for it.
func TestUnknownLayers(t *testing.T) {
	s := newBench(t).one(t)
	mapped := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: "0:1000:1", snapshots.LabelSnapshotRef: chain(1)})
	layer(t, s, "shifted/"+chain(1), "", mapped)
	layer(t, s, "somebody's own", "", ref(2))
	layer(t, s, "x/"+chain(3), "somebody's own", ref(3))
	for _, digit := range []int{1, 2, 3} {
		if _, known := unpack(t, s, "ns/", "", digit); known {
			t.Errorf("layer %d is known", digit)
		}
	}
	// What has no chain ID for a ref is none of our business.
	odd := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "mine"})
	layer(t, s, "ns/mine", "", odd)
	prepare(t, s, "again", "", odd)
}
