// Package clock tells which boot this is and how long to wait before trying
// again. Times of day come from package time; tests bend them by
// testing/synctest.
package clock

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

// Boot returns the id of the machine's current boot. What is valid until a
// reboot (process ids, mounts, network namespaces) is recorded along with it.
func Boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Backoff is a wait that doubles from First up to Most.
type Backoff struct {
	First, Most time.Duration
	// Jitter adds up to that share of the wait, so that many who failed
	// together do not return together.
	Jitter float64
}

// Wait returns how long to wait before try number n, the first being 0.
func (b Backoff) Wait(n int) time.Duration {
	wait := b.First
	for range n {
		wait *= 2
		if wait >= b.Most || wait <= 0 { // or it has wrapped around
			wait = b.Most
			break
		}
	}
	return wait + time.Duration(b.Jitter*rand.Float64()*float64(wait))
}
