package streaming

import (
	"context"
	"errors"
	"io"
	"net"

	"berth/base/errs"
	"berth/spec"
)

// forward connects stream with a TCP port of a pod until that has sent all it
// had, or ctx ends.
func (s *Server) forward(ctx context.Context, id string, port int, stream io.ReadWriter) error {
	p, err := s.Pods.Pod(id)
	if err != nil {
		return err
	}
	if p.State != spec.PodReady {
		return errs.New(errs.Conflict, "pod %s is not running", p.ID)
	}
	if p.NetNS == "" && p.Config.Security.Namespaces.Network != spec.NamespaceNode {
		return errs.New(errs.Conflict, "pod %s has no network", p.ID) // and what there is without is the host's
	}
	conn, err := s.Dial(ctx, p.NetNS, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	s.pumps.Go(func() {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		_ = conn.Close()
	})
	_, err = io.Copy(stream, conn)
	if errors.Is(err, net.ErrClosed) { // the client has gone
		return nil
	}
	return err
}
