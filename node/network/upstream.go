package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"berth/base/errs"
)

const (
	upstreamTry   = 1200 * time.Millisecond // for one server to answer
	upstreamTotal = 4 * time.Second         // resolvers give up after five
	upstreamCheck = time.Second             // between looks at the file
)

var errClosedNetwork = errs.New(errs.Denied, "the network has no way out")

// upstream knows the host's name servers, as its resolv.conf says just now.
type upstream struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	changed time.Time // of the file, when last read
	size    int64
	conf    resolvConf
}

func newUpstream(path string) *upstream { return &upstream{path: path} }

// now is the host's configuration, read again when the file has changed.
func (u *upstream) now() resolvConf {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.looked) < upstreamCheck {
		return u.conf
	}
	u.looked = time.Now()
	info, err := os.Stat(u.path)
	if err != nil || info.ModTime().Equal(u.changed) && info.Size() == u.size {
		return u.conf
	}
	if text, err := os.ReadFile(u.path); err == nil {
		u.changed, u.size = info.ModTime(), info.Size()
		u.conf = parseResolvConf(text)
	}
	return u.conf
}

// forwardQuestion asks the asker's name servers, each twice, until one has
// an answer.
func (s *Set) forwardQuestion(who asker, question *dns.Msg, protocol string) (*dns.Msg, error) {
	servers := who.upstream
	if len(servers) == 0 && !who.closed {
		servers = s.upstream.now().servers
	}
	if who.closed { // its own servers will do, if it could reach them itself
		servers = slices.DeleteFunc(slices.Clone(servers), func(server string) bool { return !isNear(who.near, server) })
		if len(servers) == 0 {
			return nil, errClosedNetwork
		}
	}
	ctx, cancel := context.WithTimeout(s.life, upstreamTotal)
	defer cancel()
	var failed *dns.Msg
	lastErr := errs.New(errs.Unavailable, "no name servers")
	for _, server := range slices.Concat(servers, servers) {
		reply, err := s.ask(ctx, server, question, protocol)
		switch {
		case err != nil:
			lastErr = err
		case reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused:
			failed = reply // another may know better
		default:
			return reply, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if failed != nil {
		return failed, nil
	}
	return nil, lastErr
}

func isNear(near []netip.Prefix, server string) bool {
	a, err := netip.ParseAddr(server)
	return err == nil && slices.ContainsFunc(near, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ask asks one server over the protocol that we were asked over: who is told
// that an answer was cut comes again by TCP.
func (s *Set) ask(ctx context.Context, server string, question *dns.Msg, protocol string) (*dns.Msg, error) {
	conn, err := s.host.dial(ctx, protocol, net.JoinHostPort(server, "53"), upstreamTry)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	client := &dns.Client{Net: protocol, Timeout: upstreamTry, UDPSize: dns.MaxMsgSize}
	out := question.Copy()
	out.Id = dns.Id()
	reply, _, err := client.ExchangeWithConnContext(ctx, out, &dns.Conn{Conn: conn})
	if err != nil {
		return nil, err
	}
	if reply == nil {
		return nil, errors.New("empty reply")
	}
	return reply, nil
}
