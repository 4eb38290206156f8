package network

import (
	"context"
	"errors"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// unplugger removes links in the background. The kernel takes tens of
// milliseconds to be sure that nobody uses a link any more, for many links
// as for one: those that come meanwhile go together.
type unplugger struct {
	mu      sync.Mutex
	waiting []*unplugging
	working bool
	going   map[string]chan struct{} // links that are waiting or being removed, by name
}

type unplugging struct {
	link string
	free func() // called when it is gone
}

// linkGroup is that of links which are about to be removed; the kernel removes
// a group at once.
const linkGroup = 0xbe127

// unplug removes the link of an endpoint. The addresses are free when it is
// gone.
func (s *Set) unplug(e *endpoint) {
	one := &unplugging{e.outside, s.retire(e)}
	u := &s.unplugger
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting = append(u.waiting, one)
	if u.going == nil {
		u.going = map[string]chan struct{}{}
	}
	if u.going[one.link] == nil {
		u.going[one.link] = make(chan struct{})
	}
	if !u.working {
		u.working = true
		s.tasks.Go(s.unplugWaiting)
	}
}

// unplugWaiting works until nothing waits.
func (s *Set) unplugWaiting() {
	for {
		s.unplugger.mu.Lock()
		batch := s.unplugger.waiting
		s.unplugger.waiting = nil
		s.unplugger.working = len(batch) > 0
		s.unplugger.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		names := make([]string, len(batch))
		for i, one := range batch {
			names[i] = one.link
		}
		if err := s.host.deleteLinks(names); err != nil {
			s.cfg.Log.ErrorContext(s.life, "cannot remove links", "links", names, "err", err)
		}
		s.unplugger.gone(names)
		for _, one := range batch {
			one.free()
		}
	}
}

// gone lets those go on who wait for links to be removed.
func (u *unplugger) gone(names []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, name := range names {
		if done := u.going[name]; done != nil {
			close(done)
			delete(u.going, name)
		}
	}
}

// await waits until no link of the name is about to be removed: one that is made
// meanwhile would be removed in its place.
func (u *unplugger) await(ctx context.Context, name string) error {
	u.mu.Lock()
	done := u.going[name]
	u.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// deleteLinks removes links; what is not there is no error. It has a socket
// of its own, as others would wait for an answer that takes long.
func (h *host) deleteLinks(names []string) error {
	return h.do(func() error {
		links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer links.Close()
		if len(names) == 1 {
			return deleteLink(links, names[0])
		}
		var failed error
		for _, name := range names {
			failed = errors.Join(failed, ignoreMissing(links.LinkSetGroup(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name}}, linkGroup)))
		}
		if failed == nil {
			failed = deleteGroup()
		}
		if failed != nil { // one by one, to know which
			failed = nil
			for _, name := range names {
				failed = errors.Join(failed, deleteLink(links, name))
			}
		}
		return failed
	})
}

// deleteGroup removes every link of the group.
func deleteGroup() error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(linkGroup)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return ignore(err, unix.ENODEV)
}

func deleteLink(links *netlink.Handle, name string) error {
	link, err := links.LinkByName(name)
	if err == nil {
		err = links.LinkDel(link)
	}
	return ignoreMissing(err)
}

func ignoreMissing(err error) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	return ignore(err, unix.ENODEV)
}
