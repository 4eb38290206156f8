package image

import (
	"context"
	"errors"

	"berth/node/snapshot"
)

// Layers of images are also what clients of other protocols stand on, and what
// they unpack is layers of images: who unpacked them first makes no difference.

// SetHolders says who else may hold layers: letGo calls remove unless somebody
// holds the layer, and lets nobody take hold of it meanwhile. Call it before
// the Set is used.
func (s *Set) SetHolders(letGo func(key snapshot.Key, remove func() error) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGo = letGo
}

// errHeld: a layer stays for somebody else.
var errHeld = errors.New("somebody holds the layer")

// letGoLayer is removeLayer where nobody else holds the layer; else errHeld.
func (s *Set) letGoLayer(ctx context.Context, key snapshot.Key) (freed int64, err error) {
	s.mu.RLock()
	letGo := s.letGo
	s.mu.RUnlock()
	if letGo == nil {
		return s.removeLayer(ctx, key)
	}
	asked := false
	err = letGo(key, func() error {
		asked = true
		freed, err = s.removeLayer(ctx, key)
		return err
	})
	if err == nil && !asked {
		return 0, errHeld
	}
	return freed, err
}

// Unpacking says whether a layer is being unpacked, by whoever. If it is, done
// is closed at the end, and land is nil. If it is not it is now, by the caller,
// until it calls land.
func (s *Set) Unpacking(key snapshot.Key) (done <-chan struct{}, land func(error)) {
	own, first := s.flights.take(key)
	if !first {
		return own.done, nil
	}
	return nil, func(err error) { s.flights.land(key, own, err) }
}

// FreedLayers has layers collected that nobody needs any more, soon.
func (s *Set) FreedLayers(ctx context.Context) { s.collectSoon(ctx) }
