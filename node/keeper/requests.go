package keeper

import (
	"errors"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// find returns the process id. Call it with s.mu held.
func (s *server) find(id string) (*child, error) {
	c := s.processes[id]
	if c == nil {
		return nil, errs.New(errs.NotFound, "no process %s", id)
	}
	return c, nil
}

func (s *server) closeStdin(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(id)
	if err != nil {
		return err
	}
	if fd, ok := c.fds[roleStdin]; ok {
		delete(c.fds, roleStdin)
		return unix.Close(fd)
	}
	return nil
}

func (s *server) closeOutput(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(id)
	if err != nil {
		return err
	}
	if c.Output != Hold {
		return errs.New(errs.Conflict, "the output of process %s is not held", id)
	}
	for _, name := range []role{roleStdout, roleStderr} {
		if fd, ok := c.fds[name]; ok {
			delete(c.fds, name)
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}

func (s *server) forget(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(id)
	if err != nil {
		return err
	}
	if c.Exit == nil {
		return errs.New(errs.Conflict, "process %s runs", id)
	}
	delete(s.processes, id)
	s.endLogger(c.fds, false)
	c.close()
	s.notes.release(c.Slot)
	return nil
}

func (s *server) reopen(id string) error {
	s.mu.Lock()
	c, err := s.find(id)
	s.mu.Unlock()
	if err != nil || c.sink == nil {
		return err
	}
	return c.sink.reopen()
}

func (s *server) mayLeave(force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.processes {
		if !force && (c == nil || c.Exit == nil) {
			return errs.New(errs.Conflict, "processes still run")
		}
	}
	return nil
}
