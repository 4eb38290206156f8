package fakesnapshot_test

import (
	"errors"
	"sync"
	"testing"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
	"berth/node/snapshot/snapshottest"
)

func TestSuite(t *testing.T) {
	var mu sync.Mutex
	byDir := map[string]*fakesnapshot.Store{}
	snapshottest.Suite(t, func(_ *testing.T, dir string) snapshot.Store {
		mu.Lock()
		defer mu.Unlock()
		if byDir[dir] == nil {
			byDir[dir] = fakesnapshot.New()
		}
		return byDir[dir]
	})
}

func TestFail(t *testing.T) {
	s := fakesnapshot.New()
	s.Fail = func(operation string) error {
		if operation == "Prepare" {
			return errs.New(errs.Exhausted, "full")
		}
		return nil
	}
	if _, err := s.Prepare(t.Context(), "k", "", nil); !errors.Is(err, errs.Exhausted) {
		t.Errorf("prepare: %v", err)
	}
	if _, err := s.View(t.Context(), "k", "", nil); err != nil {
		t.Errorf("view: %v", err)
	}
}
