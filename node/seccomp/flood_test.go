package seccomp

import (
	"encoding/json"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A container that makes forbidden calls without end gets little of the node's
// time, and none of its disk's.
func TestFlood(t *testing.T) {
	w := open(t, Config{})
	c := newWatched(saved{Container: "c", Name: "ns/pod/c", Mode: deny})
	written := func() uint64 {
		t.Helper()
		var s seen
		text, err := os.ReadFile(w.seenFile("c"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatal(err)
		}
		return s.Forbidden["mount"]
	}
	c.told["mount"] = time.Now().Add(time.Hour) // no event is due
	for range exactly {
		w.forbidden(t.Context(), c, "mount")
	}
	if n := written(); n != exactly {
		t.Errorf("%d of %d calls are written down", n, exactly)
	}
	for range 10 * exactly {
		w.forbidden(t.Context(), c, "mount")
	}
	if n := written(); n != exactly {
		t.Errorf("each call of a flood is written down: %d", n)
	}
	w.keep(t.Context(), c)
	if n := written(); n != 11*exactly {
		t.Errorf("%d calls at the end", n)
	}
}

func TestRefusalsAreSlowInAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		begin := time.Now()
		for range refusalsASecond {
			p.wait(t.Context())
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("a thousand calls were held up for %s", took)
		}
		for range 20 * refusalsASecond {
			p.wait(t.Context())
		}
		if took := time.Since(begin); took < 9*time.Second {
			t.Errorf("a flood goes through in %s", took)
		}
	})
}
