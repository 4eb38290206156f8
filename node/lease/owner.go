package lease

import (
	"context"
	"time"
)

// Owner keeps resources of one or several kinds for all namespaces.
type Owner interface {
	// Items tells of each resource once, as it is now or was at some moment
	// since the call. It reads memory only; fn does not call back.
	Items(ctx context.Context, fn func(Item)) error
	// Remove removes a resource that nothing refers to. The collector has
	// waited for everybody who held it, and Hold of it waits until Remove
	// returns, so it must not be called from there. NotFound: it has gone
	// meanwhile. Conflict: it cannot go yet; the next collection tries again.
	Remove(ctx context.Context, namespace string, r Resource) error
}

// Item is a resource and what the collector has to know of it.
type Item struct {
	Namespace string
	Resource
	// Labels say by containerd's names what it refers to (gc.ref.…), what
	// refers to it (gc.bref.…), and that it is a root (gc.root).
	Labels map[string]string
	// Refs is what it refers to by what it is: a snapshot's parent, an image's
	// target. Unlike its labels these also count where a lease is flat.
	Refs []Resource
	// Root is kept whatever refers to it. Label gc.expire ends that.
	Root bool
	// Until is when something that is a root for a time ceases to be one.
	Until time.Time
}

// node is a resource of a namespace.
type node struct {
	namespace string
	Resource
}

// Hold keeps resources, and what they refer to, from being removed until
// release is called. Take it before something that refers to them, or makes
// them, is written down, and release it when that can be seen by Items. It
// waits only for the removal of exactly these, which is then over; so take it
// before any lock that Remove takes.
func (s *Set) Hold(namespace string, all ...Resource) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range all {
		n := node{namespace, r}
		for s.pass != nil && s.pass.removing == n {
			s.ended.Wait()
		}
		s.holds[n]++
		if s.pass != nil {
			s.pass.rescue(n)
		}
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range all {
			n := node{namespace, r}
			if s.holds[n]--; s.holds[n] == 0 {
				delete(s.holds, n)
			}
		}
	}
}
