package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// host is the network namespace that bridges, rules and listening sockets
// live in.
type host struct {
	ns    *os.File // nil: the process's own
	links *netlink.Handle
}

func openHost(path string) (*host, error) {
	h := &host{}
	if path != "" {
		ns, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open the host's network namespace: %w", err)
		}
		h.ns = ns
	}
	err := h.do(func() (err error) {
		h.links, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		h.close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

func (h *host) close() {
	if h.links != nil {
		h.links.Close()
	}
	if h.ns != nil {
		_ = h.ns.Close() // nothing was written to it
	}
}

// do runs fn where sockets and /proc/sys are the host's.
func (h *host) do(fn func() error) error {
	if h.ns == nil {
		return fn()
	}
	return inNamespace(h.ns, fn)
}

// dial connects from the host; address is an IP address and a port.
func (h *host) dial(ctx context.Context, network, address string, timeout time.Duration) (conn net.Conn, err error) {
	err = h.do(func() error {
		dialer := net.Dialer{Timeout: timeout}
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// lockPools keeps other nodes on this host from choosing subnets meanwhile.
// The lock is an abstract socket: it is in the scope of the namespace that
// the subnets are in, and goes with its holder.
func (h *host) lockPools(ctx context.Context) (unlock func(), err error) {
	for {
		var l net.Listener
		err := h.do(func() (err error) {
			l, err = (&net.ListenConfig{}).Listen(ctx, "unix", "@berth-subnets")
			return err
		})
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock the address pools: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "another node is choosing subnets: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// sysctl sets a value below /proc/sys of the calling thread's namespace, and
// says whether it had another.
func sysctl(name, value string) (changed bool, err error) {
	path := "/proc/sys/" + name
	old, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(string(old)) == value {
		return false, nil
	}
	return true, os.WriteFile(path, []byte(value), 0o644)
}

// inNamespace runs fn on a thread that is in ns. Sockets that fn makes stay
// in ns. If the thread cannot go back, it is not used again.
func inNamespace(ns *os.File, fn func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = fn()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
