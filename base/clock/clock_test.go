package clock_test

import (
	"testing"
	"time"

	"berth/base/clock"
)

func TestBackoffDoublesUpToMost(t *testing.T) {
	b := clock.Backoff{First: 100 * time.Millisecond, Most: time.Minute}
	for n, want := range map[int]time.Duration{0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 3: 800 * time.Millisecond, 12: time.Minute, 10_000: time.Minute} {
		if got := b.Wait(n); got != want {
			t.Errorf("Wait(%d) = %v, want %v", n, got, want)
		}
	}
	b.Jitter = 0.5
	for range 100 {
		if got := b.Wait(0); got < 100*time.Millisecond || got > 150*time.Millisecond {
			t.Fatalf("with jitter: %v", got)
		}
	}
}

func TestBootStaysTheSame(t *testing.T) {
	one, err := clock.Boot()
	if err != nil {
		t.Skip("no boot id here:", err)
	}
	if two, _ := clock.Boot(); one == "" || one != two {
		t.Errorf("%q then %q", one, two)
	}
}
