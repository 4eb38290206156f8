package builder

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// readiness is where a process says that it serves, as it would to systemd.
type readiness struct {
	path string
	conn *net.UnixConn
}

func (b *Builder) expect() (*readiness, error) {
	path := filepath.Join(b.State, "builder.rdy")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &readiness{path, conn}, nil
}

func (r *readiness) close() {
	_ = r.conn.Close()
	_ = os.Remove(r.path)
}

var errEnded = errors.New("it has ended")

// wait waits until p says so, or has ended, or ctx is done.
func (r *readiness) wait(ctx context.Context, p *process) error {
	done, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		select {
		case <-p.over:
		case <-done.Done():
		}
		_ = r.conn.SetReadDeadline(time.Unix(1, 0)) // ends the read below
	})
	message := make([]byte, 4096)
	for {
		n, err := r.conn.Read(message)
		switch {
		case err == nil && strings.HasPrefix(string(message[:n]), "READY=1"):
			return nil
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case p.isOver():
			return errEnded
		default:
			return err
		}
	}
}
