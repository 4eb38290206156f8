package daemon

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"berth/base/errs"
	"berth/face/containerd/events"
)

// eventsSocket is where runtimes tell what happens in them.
func (n *node) eventsSocket() string { return n.config.Socket + ".ttrpc" }

// openEvents opens that socket. A name that is too long for it is no reason not
// to serve: only foreign runtimes ask for it.
func (n *node) openEvents(ctx context.Context) (net.Listener, error) {
	listener, err := listen(ctx, n.eventsSocket(), "root", n.log)
	switch {
	case errs.KindOf(err) == errs.Invalid:
		n.log.WarnContext(ctx, "foreign runtimes cannot tell their events", "err", err)
		return nil, nil
	case err != nil:
		return nil, err
	}
	return listener, nil
}

// serveEvents takes the events of runtimes until ctx is done.
func (n *node) serveEvents(ctx context.Context, listener net.Listener) error {
	if listener == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	events.NewService(n.engine.exchange).RegisterTTRPC(server, n.told)
	defer context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})()
	err = server.Serve(ctx, listener)
	if ctx.Err() != nil || errors.Is(err, ttrpc.ErrServerClosed) {
		return ctx.Err()
	}
	return err
}

// told says whether an event of a runtime is one that the node tells by itself:
// all that is about tasks, but for want of memory. How a process ended, the
// runtime's driver wants to know at once.
func (n *node) told(e *types.Envelope) bool {
	if !strings.HasPrefix(e.GetTopic(), "/tasks/") || e.GetTopic() == "/tasks/oom" {
		return false
	}
	exit := &apievents.TaskExit{}
	if e.GetTopic() == "/tasks/exit" && proto.Unmarshal(e.GetEvent().GetValue(), exit) == nil {
		id := exit.GetID()
		if id == exit.GetContainerID() {
			id = ""
		}
		n.shims.Ended(e.GetNamespace(), exit.GetContainerID(), id, int(exit.GetPid()), exit.GetExitStatus(), exit.GetExitedAt().AsTime())
	}
	return true
}
