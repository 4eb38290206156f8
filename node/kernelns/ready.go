package kernelns

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Run keeps sets of namespaces ready until ctx is done.
func (s *Set) Run(ctx context.Context) error {
	for {
		wait := time.Duration(0)
		for ctx.Err() == nil && s.missing() {
			if err := s.prepare(ctx); err != nil {
				s.cfg.Log.WarnContext(ctx, "no namespaces can be kept ready", "err", err)
				wait = 10 * time.Second
				break
			}
		}
		var again <-chan time.Time
		if wait > 0 {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-again:
		}
	}
}

// prepare makes one more ready set.
func (s *Set) prepare(ctx context.Context) error {
	dir, err := s.fresh(Want{Net: true, IPC: true, UTS: true})
	if err != nil {
		return err
	}
	if s.cfg.Made != nil {
		if err := s.cfg.Made(ctx, filepath.Join(dir, "net")); err != nil {
			return errors.Join(err, removeSet(dir))
		}
	}
	s.mu.Lock()
	s.ready = append(s.ready, dir)
	s.mu.Unlock()
	return nil
}

func (s *Set) missing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted && len(s.ready) < s.cfg.Ready
}

// take gives the oldest ready set away, or "".
func (s *Set) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) == 0 {
		return ""
	}
	dir := s.ready[0]
	s.ready = slices.Delete(s.ready, 0, 1)
	return dir
}

// takeWhole gives the oldest ready set away in which all is still there, or "".
// Whoever tidies up mounts may have been at them.
func (s *Set) takeWhole(ctx context.Context) string {
	for {
		dir := s.take()
		if dir == "" || pathsIn(dir).hold(Want{Net: true, IPC: true, UTS: true}) {
			return dir
		}
		s.cfg.Log.WarnContext(ctx, "somebody has unmounted namespaces that were kept ready", "dir", dir)
		if err := s.discard(dir); err != nil {
			s.cfg.Log.WarnContext(ctx, "they are left", "err", err)
		}
	}
}

// refill has Run look what is missing.
func (s *Set) refill() {
	s.mu.Lock()
	s.wanted = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // it has yet to look
	}
}

// suits says whether a ready set is what a pod wants.
func suits(want Want) bool {
	if !want.Net || !want.IPC || !want.UTS || want.Idmap != nil {
		return false
	}
	for name := range want.Sysctls {
		// What is the default for new interfaces comes too late for one
		// that is there.
		if strings.Contains(plainName(name), "/default/") {
			return false
		}
	}
	return true
}
