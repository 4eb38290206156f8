package lcfs_test

import (
	"strings"
	"testing"
)

// TestProbe: what is missing is said, and nothing else.
func TestProbe(t *testing.T) {
	found := features(t)
	t.Logf("%+v", *found)
	all := found.File && found.Loop && found.PlainData && found.Descriptors && found.Shift && found.Nested && found.NestedLoop
	if all != (found.Why() == "") || strings.Contains(found.Why(), "%!") {
		t.Errorf("all is there: %v; missing: %q", all, found.Why())
	}
	if found.Data && !found.Usable(false) && !found.Usable(true) {
		t.Error("bodies are found, but the driver is not usable")
	}
}
