package snapshots

import (
	"context"
	"time"

	"berth/base/errs"
	"berth/node/snapshot"
)

// patience is how long a client may do nothing about a layer that it said it
// would unpack, while others wait for it. It may be fetching it; or be dead.
const patience = time.Minute

// flight is a layer that a client of ours unpacks, from Prepare to Commit or
// Remove. Others who want the same layer wait for it.
type flight struct {
	land  func(error)
	timer *time.Timer
}

// board waits until nobody else unpacks the layer, or it is there, and lets the
// snapshot n unpack it. here says that it is there.
func (s *Service) board(ctx context.Context, n name, layer snapshot.Key) (here bool, err error) {
	for {
		if _, err := s.store.Stat(ctx, layer); err == nil {
			s.land(n, nil)
			return true, nil
		}
		s.mu.RLock()
		mine := s.flights[n]
		s.mu.RUnlock()
		if mine != nil {
			return false, nil
		}
		done, land := s.node.Layers.Unpacking(layer)
		if land != nil {
			s.takeOff(n, land)
			continue // it may have come meanwhile
		}
		select {
		case <-done:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

func (s *Service) takeOff(n name, land func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flights[n] = &flight{land: land, timer: time.AfterFunc(patience, func() {
		s.land(n, errs.New(errs.Timeout, "who said that he would unpack the layer did not"))
	})}
}

// land ends the flight of a snapshot, if it has one.
func (s *Service) land(n name, err error) {
	s.mu.Lock()
	f := s.flights[n]
	delete(s.flights, n)
	s.mu.Unlock()
	if f != nil {
		f.timer.Stop()
		f.land(err)
	}
}

// busy keeps a flight from being given up while its layer is unpacked.
func (s *Service) busy(n name) (rest func()) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.flights[n]
	if f == nil {
		return func() {}
	}
	f.timer.Stop()
	return func() { f.timer.Reset(patience) }
}
