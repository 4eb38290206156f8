package sandbox

import (
	"context"
	"time"

	"berth/base/errs"
)

// Make prepares a sandbox to be started. errs.Exists: it has been made before.
func (s *Set) Make(ctx context.Context, namespace, id string) error {
	_, err := s.advance(ctx, namespace, id, func(state *State) error {
		if state.Boot != "" {
			return errs.New(errs.Exists, "sandbox %s already running: already exists", id)
		}
		*state = State{Boot: s.boot, Made: time.Now().UTC()}
		return nil
	})
	return err
}

// Start lets a sandbox run that was made.
func (s *Set) Start(ctx context.Context, namespace, id string) (Sandbox, error) {
	return s.advance(ctx, namespace, id, func(state *State) error {
		switch {
		case state.Boot == "":
			return errs.New(errs.NotFound, "unable to find sandbox %q", id)
		case !state.Started.IsZero():
			return errs.New(errs.Conflict, "sandbox %q has been started before", id)
		}
		state.Started = time.Now().UTC()
		return nil
	})
}

// Stop ends a sandbox. One that does not run is no error.
func (s *Set) Stop(ctx context.Context, namespace, id string) error {
	_, err := s.advance(ctx, namespace, id, func(state *State) error {
		if state.Boot != "" && state.Stopped.IsZero() {
			state.Stopped = time.Now().UTC()
		}
		return nil
	})
	return err
}

// Shutdown ends a sandbox so that it can be made anew. errs.NotFound: it was
// not made.
func (s *Set) Shutdown(ctx context.Context, namespace, id string) error {
	if err := s.Stop(ctx, namespace, id); err != nil {
		return err
	}
	_, err := s.advance(ctx, namespace, id, func(state *State) error {
		if state.Boot == "" {
			return errs.New(errs.NotFound, "sandbox %q: not found", id)
		}
		*state = State{}
		return nil
	})
	return err
}

// Wait waits until a sandbox has been stopped, and says when that was.
// errs.NotFound: it was not made.
func (s *Set) Wait(ctx context.Context, namespace, id string) (time.Time, error) {
	k := key{namespace, id}
	s.mu.Lock()
	one, ok := s.byKey[k]
	if !ok || one.State.Boot == "" {
		s.mu.Unlock()
		return time.Time{}, errs.New(errs.NotFound, "sandbox %q: not found", id)
	}
	if !one.State.Stopped.IsZero() {
		s.mu.Unlock()
		return one.State.Stopped, nil
	}
	ended := s.ended[k]
	if ended == nil {
		ended = make(chan struct{})
		s.ended[k] = ended
	}
	s.mu.Unlock()
	select {
	case <-ended:
		return time.Now().UTC(), nil
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
}

// advance changes the state of a sandbox, and writes it down if it did.
func (s *Set) advance(ctx context.Context, namespace, id string, change func(*State) error) (Sandbox, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	one, err := s.Get(namespace, id)
	if err != nil {
		return one, err
	}
	was := one.State
	if err := change(&one.State); err != nil || one.State == was {
		return one, err
	}
	return one, s.put(ctx, one)
}
