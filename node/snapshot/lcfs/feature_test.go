package lcfs_test

import "testing"

// TestProbe: where this runs all of it is to work.
func TestProbe(t *testing.T) {
	found := features(t)
	t.Logf("%+v", *found)
	if !found.Usable(false) || !found.Usable(true) || found.Why() != "" {
		t.Errorf("missing here: %s", found.Why())
	}
}
