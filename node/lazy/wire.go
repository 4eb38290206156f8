package lazy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/tree"
)

// The protocol: a SOCK_SEQPACKET socket, a packet for each message: a byte
// that says what it is, and what belongs to it. Hello and retire must never
// change, so that any node can replace any process.
const (
	protocol  = 1
	maxPacket = 128 << 10
)

type op byte

// Of node.
const (
	opHello   op = iota + 1 // a byte: the protocol. Answered by the same with pid and the mount's descriptor
	opMissing               // digests with sizes: these are missing, too
	opNamed                 // all that is missing has been named
	opHere                  // digests: these are in the folder now
	opFailed                // a digest and a text: that body cannot be had
	opRetire                // nothing is missing: end once no mount needs the tree
)

// Of the process.
const (
	opWelcome op = iota + 65
	opWant       // a digest: somebody waits for it
)

const sizedLen = len(tree.Digest{}) + 8

// conn is one end of the socket. One goroutine receives; any may send.
type conn struct {
	sock *net.UnixConn
	buf  []byte
	mu   sync.Mutex
}

func newConn(sock *net.UnixConn) *conn { return &conn{sock: sock, buf: make([]byte, maxPacket)} }

func (c *conn) send(o op, payload []byte, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A peer that is stopped must not stop us: it can come back and ask again.
	_ = c.sock.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := c.sock.WriteMsgUnix(append([]byte{byte(o)}, payload...), rights, nil); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// receive returns io.EOF when the other end is gone. payload is valid until
// the next call; a descriptor is the caller's, -1 where there is none.
func (c *conn) receive() (o op, payload []byte, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(c.buf, oob)
	if err != nil {
		return 0, nil, -1, err
	}
	fds, err := rights(oob[:oobn])
	fd = -1
	for i, got := range fds {
		if i == 0 {
			fd = got
			unix.CloseOnExec(fd)
		} else {
			_ = unix.Close(got)
		}
	}
	switch {
	case err != nil:
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errs.New(errs.Invalid, "lazy: a message that is too long")
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return 0, nil, -1, err
	}
	return op(c.buf[0]), c.buf[1:n], fd, nil
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, e := unix.ParseUnixRights(&m)
		fds, err = append(fds, got...), errors.Join(err, e)
	}
	return fds, err
}

// eachPacket calls send with whole items of n bytes, as many as fit a packet.
func eachPacket(items []byte, n int, send func([]byte) error) error {
	most := (maxPacket - 1) / n * n
	for len(items) > 0 {
		part := items[:min(most, len(items))]
		if err := send(part); err != nil {
			return err
		}
		items = items[len(part):]
	}
	return nil
}

func appendMissing(b []byte, m Missing) []byte {
	return binary.LittleEndian.AppendUint64(append(b, m.Object[:]...), uint64(m.Size))
}

// eachMissing reads what appendMissing wrote.
func eachMissing(b []byte, fn func(Missing)) {
	for ; len(b) >= sizedLen; b = b[sizedLen:] {
		m := Missing{Size: int64(binary.LittleEndian.Uint64(b[len(tree.Digest{}):]))}
		copy(m.Object[:], b)
		fn(m)
	}
}

func eachDigest(b []byte, fn func(tree.Digest)) {
	for ; len(b) >= len(tree.Digest{}); b = b[len(tree.Digest{}):] {
		fn(tree.Digest(b[:len(tree.Digest{})]))
	}
}
