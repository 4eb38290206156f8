package fakesnapshot_test

import (
	"errors"
	"testing"

	"berth/base/errs"
	"berth/node/snapshot/fakesnapshot"
	"berth/node/snapshot/snapshottest"
)

func TestSuite(t *testing.T) {
	snapshottest.Suite(t, fakesnapshot.Keeping())
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
