package heap

import (
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func cycles() uint64 {
	s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// percent is GOGC as it is now; 2^32-1 and more where the collector is off.
func percent() uint64 {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// usual are the settings of a process whose environment says nothing, which are
// there again when the test is over.
func usual(t *testing.T) {
	t.Helper()
	limit, percent := debug.SetMemoryLimit(-1), debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetMemoryLimit(limit); debug.SetGCPercent(percent) })
}

var kept [][]byte

func waste(bytes int) {
	for range bytes >> 16 {
		kept = append(kept[:0], make([]byte, 1<<16))
	}
}

func TestCalm(t *testing.T) {
	usual(t)
	limit := debug.SetMemoryLimit(-1)
	end := calm(time.Millisecond)
	defer end()
	for range 3 {
		eventually(t, "the collector rests when nothing happens", func() bool { return percent() > 1<<31 })
		before := cycles()
		if debug.SetMemoryLimit(-1) == limit {
			t.Fatal("at rest there is no limit")
		}
		waste(256 << 20)
		if cycles() == before {
			t.Fatal("nothing was collected of 256 MB of garbage")
		}
	}
	end()
	waste(64 << 20)
	if percent() != 100 || debug.SetMemoryLimit(-1) != limit {
		t.Fatal("not all is as it was")
	}
}

// What a burst leaves behind is given back before the rest.
func TestCalmGivesBack(t *testing.T) {
	usual(t)
	defer calm(10 * time.Millisecond)()
	eventually(t, "rest", func() bool { return percent() > 1<<31 })
	before := read()
	kept = append(kept, make([]byte, 64<<20))
	kept = nil
	waste(256 << 20)
	eventually(t, "rest, with as little as before", func() bool {
		return percent() > 1<<31 && read().held < 2*before.held+2*worthIt
	})
}

// Who has turned the collector off in the environment wants it off.
func TestCalmHeedsGOGC(t *testing.T) {
	usual(t)
	debug.SetGCPercent(-1)
	limit := debug.SetMemoryLimit(-1)
	defer calm(time.Microsecond)()
	waste(1 << 20)
	if debug.SetMemoryLimit(-1) != limit || percent() <= 1<<31 {
		t.Fatal("it was turned on, or limited")
	}
}
