package snapshot_test

import (
	"errors"
	"maps"
	"reflect"
	"testing"

	"berth/base/errs"
	"berth/node/snapshot"
)

func TestChain(t *testing.T) {
	const a = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	const b = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	if got := snapshot.Chain("", a); got != a {
		t.Errorf("the lowest layer is %s, want its diff ID", got)
	}
	// printf '%s %s' $a $b | sha256sum
	want := snapshot.Key("sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c")
	if got := snapshot.Chain(a, b); got != want {
		t.Errorf("chain is %s, want %s", got, want)
	}
	if err := want.Check(); err != nil {
		t.Error(err)
	}
}

func TestMergeLabels(t *testing.T) {
	old := map[string]string{"a": "1", "b": "2"}
	got := snapshot.MergeLabels(old, map[string]string{"b": "", "c": "3"})
	if want := map[string]string{"a": "1", "c": "3"}; !maps.Equal(got, want) {
		t.Errorf("merged %v, want %v", got, want)
	}
	got["a"] = "changed"
	if old["a"] != "1" {
		t.Error("merging shares the old map")
	}
}

func TestIDMaps(t *testing.T) {
	uids := []snapshot.IDMap{{Container: 0, Host: 100000, Size: 1000}, {Container: 1000, Host: 1000, Size: 1}}
	gids := []snapshot.IDMap{{Container: 0, Host: 200000, Size: 65536}}
	gotUIDs, gotGIDs, err := snapshot.IDMaps(snapshot.IDMapLabels(uids, gids))
	if err != nil || !reflect.DeepEqual(gotUIDs, uids) || !reflect.DeepEqual(gotGIDs, gids) {
		t.Errorf("maps came back as %v, %v, %v", gotUIDs, gotGIDs, err)
	}
	if u, g, err := snapshot.IDMaps(nil); u != nil || g != nil || err != nil {
		t.Errorf("no labels: %v, %v, %v", u, g, err)
	}
	for _, bad := range []string{"0", "0:1", "0:1:0", "0:1:2:3", "a:b:c", "0:1:2,", "-1:1:1", "0:1:2 x", "4294967296:1:1"} {
		_, _, err := snapshot.IDMaps(map[string]string{snapshot.UIDMap: bad, snapshot.GIDMap: "0:1:1"})
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("map %q: got error %v, want it invalid", bad, err)
		}
	}
}
