package content

import (
	"sync"

	"berth/node/lease"
)

// resource is one of a namespace.
type resource struct {
	namespace string
	lease.Resource
}

// locks are one for each resource that somebody is at.
type locks struct {
	mu    sync.Mutex
	taken map[resource]*lock
}

type lock struct {
	sync.Mutex
	wanted int
}

// lock waits for everybody else who has r.
func (l *locks) lock(r resource) (unlock func()) {
	l.mu.Lock()
	if l.taken == nil {
		l.taken = map[resource]*lock{}
	}
	one := l.taken[r]
	if one == nil {
		one = &lock{}
		l.taken[r] = one
	}
	one.wanted++
	l.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.wanted--; one.wanted == 0 {
			delete(l.taken, r)
		}
	}
}
