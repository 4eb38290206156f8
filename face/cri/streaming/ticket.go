package streaming

import (
	"crypto/rand"
	"sync"
	"time"

	"berth/base/errs"
)

// ticket is what the bearer of a URL may have.
type ticket struct {
	kind, id string
	command  []string
	flags
	ports  []int32
	issued time.Time
}

// tickets are those that nobody has come with yet.
type tickets struct {
	mu  sync.Mutex
	all map[string]ticket // by token
}

const (
	ticketAge = time.Minute
	// mostTickets is far more than clients that mean it hold at once.
	mostTickets = 1000
)

// add keeps a ticket and returns its token. errs.Exhausted.
func (s *tickets) add(t ticket) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.issued = time.Now()
	if len(s.all) >= mostTickets {
		s.forget(t.issued)
	}
	if len(s.all) >= mostTickets {
		return "", errs.New(errs.Exhausted, "%d streams were asked for and not come for, try again in a minute", len(s.all))
	}
	token := rand.Text()
	s.all[token] = t
	return token, nil
}

// take hands a ticket out, once.
func (s *tickets) take(kind, token string) (ticket, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(time.Now())
	t, found := s.all[token]
	if !found || t.kind != kind {
		return ticket{}, false
	}
	delete(s.all, token)
	return t, true
}

func (s *tickets) forget(now time.Time) {
	for token, t := range s.all {
		if now.Sub(t.issued) > ticketAge {
			delete(s.all, token)
		}
	}
}
