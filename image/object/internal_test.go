package object

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// The table of known digests against a map, with keys that crowd.
func TestSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s set
	want := map[key]bool{}
	for range 100_000 {
		k := key{byte(r.IntN(4)), 0, 0, 0, 0, 0, byte(r.IntN(8)), byte(r.IntN(256)), byte(r.IntN(4)), byte(r.IntN(2))}
		switch r.IntN(3) {
		case 0:
			s.remove(k)
			delete(want, k)
		default:
			s.add(k)
			want[k] = true
		}
		if k[8] = byte(r.IntN(4)); s.has(k) != want[k] {
			t.Fatalf("has %x: %v", k, s.has(k))
		}
	}
	n := len(want)
	if want[key{}] {
		n--
	}
	if s.n != n {
		t.Errorf("%d keys, want %d", s.n, n)
	}
	for k := range want {
		if !s.has(k) {
			t.Errorf("%x is lost", k)
		}
		s.remove(k)
	}
	if s.n != 0 || s.zero {
		t.Errorf("%d keys are left", s.n)
	}
}

func TestSetIsSmall(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s set
	for i := 1; i <= 100_000; i++ {
		var k key
		for j := range k {
			k[j] = byte(r.Uint32())
		}
		s.add(k)
		if i > 1000 && len(s.slots)*12 > 17*i {
			t.Fatalf("%d bytes for each of %d keys", len(s.slots)*12/i, i)
		}
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		work := func(d time.Duration) time.Time { return time.Now().Add(-d) }
		for _, c := range []struct {
			pace         Pace
			worked, rest time.Duration
		}{
			{Gentle, 20 * time.Millisecond, 180 * time.Millisecond},
			{Gentle, time.Millisecond, 0},
			{Full, time.Second, 0},
			{0.5, time.Second, time.Second},
		} {
			begin := time.Now()
			if _, err := c.pace.Rest(t.Context(), work(c.worked)); err != nil || time.Since(begin).Round(time.Millisecond) != c.rest {
				t.Errorf("pace %v rests for %v after %v: %v", c.pace, time.Since(begin), c.worked, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := Gentle.Rest(ctx, work(time.Second)); err == nil || time.Since(begin) > time.Second {
			t.Errorf("rest goes on for %v after it is cancelled: %v", time.Since(begin), err)
		}
	})
}
