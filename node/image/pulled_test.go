package image

import (
	"testing"

	"berth/base/errs"
	"berth/spec"
)

func TestTallyCountsWhatCameOverTheNetwork(t *testing.T) {
	seen := 0
	count := newTally()
	report := count.watch(func(spec.Progress) { seen++ })
	for _, p := range []spec.Progress{
		{Phase: spec.Resolving, Item: "a"},
		{Phase: spec.Fetching, Item: "x", Current: 100}, // there already when it went on
		{Phase: spec.Fetching, Item: "x", Current: 150},
		{Phase: spec.Fetching, Item: "y"},
		{Phase: spec.Unpacking, Item: "x", Current: 999},
		{Phase: spec.Fetching, Item: "y", Current: 7},
		{Phase: spec.Fetching, Status: "retrying: x"},
		{Phase: spec.Fetching, Item: "x", Current: 120}, // again, after a cut
		{Phase: spec.Fetching, Item: "x", Current: 160},
	} {
		report(p)
	}
	if seen != 9 {
		t.Errorf("%d were passed on", seen)
	}
	var got Pulled
	count.told(func(p Pulled) { got = p }, errs.New(errs.Timeout, "x"))
	if got.Bytes != 67 || got.Err == nil || got.Took <= 0 {
		t.Errorf("%+v", got)
	}
	count.told(nil, nil)
}
