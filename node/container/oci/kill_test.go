package oci_test

import (
	"testing"
	"time"
)

// Wherever the runtime is killed, nothing is left: no cgroup, no record and
// no process.
func TestKilledRuntime(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		killed, survived := 0, 0
		for delay := time.Duration(0); delay < 40*time.Millisecond; delay += 2 * time.Millisecond {
			l := b.make(command("sleep", "1000"))
			b.keeper.kill = func(int) bool {
				<-time.After(delay)
				return true
			}
			_, err := b.runtime.Run(t.Context(), l)
			b.keeper.kill = nil
			if err == nil {
				survived++
				if err := b.runtime.Delete(t.Context(), l.ID); err != nil {
					t.Error(err)
				}
				b.keeper.exit(l.ID)
			} else {
				killed++
			}
			b.nothingLeft(l.ID)
			await(t, func() bool { b.keeper.reapStrangers(); return len(b.keeper.strangers()) == 0 })
		}
		t.Logf("%d killed, %d started", killed, survived)
		if killed == 0 {
			t.Error("none was killed in time")
		}
	})
}
