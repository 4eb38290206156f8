package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// podTimeout is long for a connection that stays within one machine.
const podTimeout = 10 * time.Second

// Dial connects to a TCP port of the loopback within the network namespace at
// the path, or in the host's where that is "": by IPv4 and, where nobody
// answers there, by IPv6.
func Dial(ctx context.Context, namespace string, port int) (net.Conn, error) {
	var conn net.Conn
	dial := func() error {
		var failed error
		for _, host := range []string{"127.0.0.1", "::1"} {
			// An address needs no second goroutine, which would be elsewhere.
			d := net.Dialer{Timeout: podTimeout}
			c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err == nil {
				conn = c
				return nil
			}
			if failed == nil || !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ECONNREFUSED) {
				failed = err
			}
		}
		return failed
	}
	if namespace == "" {
		return conn, dial()
	}
	ns, err := os.Open(namespace) //nolint:gosec // a pod's, by its record
	if err != nil {
		return nil, fmt.Errorf("connect to port %d: %w", port, err)
	}
	defer ns.Close()
	if err := inNamespace(ns, dial); err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, err
	}
	return conn, nil
}
