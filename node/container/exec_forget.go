package container

// ForgetExec says that nobody will ask for an exec any more: it is forgotten
// when it has ended and its session is closed. None of that id is no error.
func (s *Set) ForgetExec(id string) {
	s.execMu.Lock()
	defer s.execMu.Unlock()
	e := s.execs[id]
	if e == nil || e.request != nil { // those of a client it deletes itself
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unwanted = true
	if !e.ended.IsZero() {
		delete(s.execs, id)
	}
}

// dropUnwanted forgets an exec that has ended, if nobody wants to know.
func (s *Set) dropUnwanted(e *execution) {
	s.execMu.Lock()
	defer s.execMu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.unwanted {
		delete(s.execs, e.id)
	}
}
