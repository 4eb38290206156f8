// Package heap has Go's collector rest while a program does.
//
// Left alone, the collector goes over the whole heap two minutes after it last
// did, for as long as the program lives and whether or not there is garbage: of
// what an idle daemon uses that is most. Calm has it rest until there is garbage again,
// and before that give back what a large burst of work has left behind.
package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// pause is how long next to nothing must have been allocated for the program
	// to be at rest.
	pause = 3 * time.Second
	// least is how much may be allocated at rest before the collector comes back,
	// however small the heap.
	least = 4 << 20
	// worthIt is how many bytes must be held, beyond twice of what was when all was
	// tidy, for it to be worth to tidy up again.
	worthIt = 8 << 20
	// headroom is what the runtime keeps of a limit for itself.
	headroom = 1 << 20
)

// Calm looks after the collector of this process until end is called. It does
// nothing where the environment has turned the collector off (GOGC=off).
func Calm() (end func()) { return calm(pause) }

func calm(pause time.Duration) (end func()) {
	c := &calmer{pause: pause, limit: debug.SetMemoryLimit(-1)}
	c.percent = debug.SetGCPercent(-1)
	debug.SetGCPercent(c.percent)
	if c.percent < 0 {
		return func() {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allocated = read().allocated
	c.timer = time.AfterFunc(pause, c.look)
	c.listen()
	return c.end
}

// calmer looks at the heap from when the collector has run until the program is
// at rest. At rest it has no timer, and the collector runs only when memory
// comes to a limit a little above what is in use; then the usual rule holds
// again, until the next rest.
type calmer struct {
	pause   time.Duration
	percent int   // GOGC
	limit   int64 // GOMEMLIMIT

	mu        sync.Mutex
	timer     *time.Timer
	allocated uint64 // since the process began, when it was last looked at
	tidy      uint64 // bytes held when the heap was tidied up
	resting   bool
	ended     bool
}

// sentinel is garbage from the beginning. It must not be so small that the
// runtime has it share a block, and so has a pointer.
type sentinel struct{ _ *calmer }

// listen has collected called when the collector has run. mu is held.
func (c *calmer) listen() { runtime.AddCleanup(&sentinel{}, (*calmer).collected, c) }

func (c *calmer) collected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.wake()
	c.allocated = read().allocated
	c.timer.Reset(c.pause)
	c.listen()
}

// look sees whether the program has come to rest.
func (c *calmer) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || c.resting {
		return
	}
	now := read()
	busy := now.allocated-c.allocated > max(now.live, least)/4
	c.allocated = now.allocated
	switch {
	case busy:
	case now.held > 2*c.tidy+worthIt:
		debug.FreeOSMemory()
		c.tidy = read().held
	default:
		c.rest(now)
		return
	}
	c.timer.Reset(c.pause)
}

// rest has the collector wait for as much garbage as the usual rule would let
// come together. mu is held.
func (c *calmer) rest(now figures) {
	limit := now.used + max(now.live, least) + headroom
	debug.SetMemoryLimit(min(c.limit, int64(limit))) //nolint:gosec // no process has so much memory
	debug.SetGCPercent(-1)
	c.resting = true
}

// wake lets the usual rule hold. mu is held.
func (c *calmer) wake() {
	if c.resting {
		debug.SetGCPercent(c.percent)
		debug.SetMemoryLimit(c.limit)
		c.resting = false
	}
}

func (c *calmer) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.timer.Stop()
	c.wake()
}

// figures are of the heap, in bytes.
type figures struct {
	allocated uint64 // since the process began
	live      uint64 // what the collector found in use when it last ran
	held      uint64 // what the process has of memory
	used      uint64 // of that what is not free
}

func read() figures {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	at := func(i int) uint64 { return samples[i].Value.Uint64() }
	held := at(2) - at(3)
	return figures{allocated: at(0), live: at(1), held: held, used: held - at(4)}
}
