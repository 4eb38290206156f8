package streaming

import (
	"io"
	"sync/atomic"
	"time"
)

// pump copies what a process writes to its client.
type pump struct {
	done    chan struct{}
	waits   atomic.Bool
	carried atomic.Int64
}

// quiet is how often a pump is looked at whose process has ended. What a child
// of it holds open may never end by itself.
const quiet = 50 * time.Millisecond

// copyOut starts a pump. A client that takes no more is none to the process:
// lost is called.
func (s *Server) copyOut(to io.Writer, from io.Reader, lost func()) *pump {
	p := &pump{done: make(chan struct{})}
	s.pumps.Go(func() {
		defer close(p.done)
		if p.run(to, from) != nil {
			lost()
		}
	})
	return p
}

// run copies until from ends; an error is the client's.
func (p *pump) run(to io.Writer, from io.Reader) error {
	buffer := make([]byte, 32<<10)
	for {
		p.waits.Store(true)
		n, err := from.Read(buffer)
		p.waits.Store(false)
		if n > 0 {
			p.carried.Add(int64(n))
			if _, err := to.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil //nolint:nilerr // the end of a pipe and of a terminal differ, and mean the same
		}
	}
}

// drain waits until pumps have carried what a process left that has ended, or
// until stop is closed.
func drain(pumps []*pump, stop <-chan struct{}) {
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	for _, p := range pumps {
		for before, idle := int64(-1), 0; idle < 2; {
			select {
			case <-p.done:
				idle = 2
			case <-stop:
				return
			case <-tick.C:
				if now := p.carried.Load(); now != before || !p.waits.Load() {
					before, idle = now, 0
				} else {
					idle++
				}
			}
		}
	}
}
