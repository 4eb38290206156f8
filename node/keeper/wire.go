package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// The protocol: a SOCK_SEQPACKET socket, one JSON message a packet, with
// descriptors beside it. A request has a number, and its answer has the
// same; exits come with number zero. Messages hello, upgrade and shutdown
// must never change, so that any node can replace any keeper.
const (
	protocol   = 2         // from 2 on a node knows of sockets
	maxMessage = 192 << 10 // below the kernel's default for a packet
	maxFiles   = 16        // descriptors beside one message
)

type op string

const (
	opHello      op = "hello"   // answered by a process for each, then done
	opProcess    op = "process" // a launched, listed or adopted process with its descriptors
	opDone       op = "done"
	opFail       op = "fail"
	opExit       op = "exit"
	opLaunch     op = "launch"
	opCancel     op = "cancel" // Number is that of the launch
	opAdopt      op = "adopt"
	opCloseStdin op = "close-stdin"
	opForget     op = "forget"
	opCloseOut   op = "close-output"
	opReopen     op = "reopen"
	opUpgrade    op = "upgrade"
	opShutdown   op = "shutdown"
	opKeep       op = "keep" // descriptors of node's own, under the name ID
	opKept       op = "kept" // one of those, in the answer to hello
	opDrop       op = "drop"
	opListen     op = "listen" // opKeep for a socket
	opLetGo      op = "let-go" // an event: the FIFOs of ID are the clients' alone
)

type message struct {
	Number   uint64   `json:"n,omitempty"`
	Op       op       `json:"op"`
	ID       string   `json:"id,omitempty"`
	Launch   *Launch  `json:"launch,omitempty"`
	Record   *record  `json:"process,omitempty"`
	Exit     *Exit    `json:"exit,omitempty"`
	Fail     *failure `json:"fail,omitempty"`
	Command  []string `json:"command,omitempty"`
	Force    bool     `json:"force,omitempty"`
	Pid      int      `json:"pid,omitempty"`
	Protocol int      `json:"protocol,omitempty"`

	files []int // go beside a request; the caller's
}

// record is all that a keeper must be told to take over a process.
type record struct {
	ID     string
	Pid    int
	Output Output
	Log    Log
	Slot   int    // of the note, see notes
	Roles  []role // of the descriptors beside the message, in their order
	Exit   *Exit  `json:",omitempty"`
	Own    bool   `json:",omitempty"` // a child of the keeper; only across its own upgrade
}

// role says what a descriptor is for. All of them are the keeper's ends.
type role string

const (
	rolePidfd   role = "pidfd"
	roleStdin   role = "stdin"
	roleStdout  role = "stdout"
	roleStderr  role = "stderr"
	roleConsole role = "console"
	rolePeer    role = "peer" // the terminal's other side, so that it never looks closed while the process lives; never passed on
	roleHoldOut role = "hold-out"
	roleHoldIn  role = "hold-in"

	// Of given streams. roleStdin is the write end of a client's FIFO,
	// roleStdout and roleStderr are pipes on their way to a file.
	roleOut     role = "out"      // a FIFO, open both ways, or the pipe that a terminal is copied to
	roleErr     role = "err"      // likewise, never a pipe
	roleIn      role = "in"       // what a terminal is fed from
	roleFileOut role = "file-out" // where roleStdout goes
	roleFileErr role = "file-err"
	roleRestOut role = "rest-out" // the read end of a FIFO in which something is left
	roleRestErr role = "rest-err"
	roleLogger  role = "logger" // pidfd
	roleQuiet   role = "quiet"  // what a terminal's logger takes for standard error
)

// failure carries an error through the socket.
type failure struct {
	Kind  errs.Kind
	Text  string
	Argv0 string `json:",omitempty"` // of a LaunchError
	Code  int    `json:",omitempty"`
}

func failed(err error) *failure {
	if le, ok := errors.AsType[*LaunchError](err); ok {
		return &failure{Text: le.Text, Argv0: le.Argv0, Code: le.Code}
	}
	return &failure{Kind: errs.KindOf(err), Text: err.Error()}
}

func (f *failure) err() error {
	if f.Argv0 != "" {
		return &LaunchError{Argv0: f.Argv0, Code: f.Code, Text: f.Text}
	}
	return errs.New(f.Kind, "keeper: %s", f.Text)
}

// conn is one end of the socket. One goroutine receives; any may send.
type conn struct {
	sock *net.UnixConn
	buf  []byte
	mu   sync.Mutex
}

func newConn(sock *net.UnixConn) *conn { return &conn{sock: sock, buf: make([]byte, maxMessage)} }

// send passes m and copies of fds.
func (c *conn) send(m message, fds ...int) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		return errs.New(errs.Invalid, "%s: %d bytes are too many for one message", m.Op, len(data))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A peer that is stopped must not stop us: it can come back and ask again.
	_ = c.sock.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := c.sock.WriteMsgUnix(data, rights, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Op, err)
	}
	return nil
}

// receive returns io.EOF when the other end is gone. The descriptors are
// the caller's to close, and closed on exec.
func (c *conn) receive() (m message, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(c.buf, oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 && oobn == 0 {
		return m, nil, io.EOF
	}
	if fds, err = parseRights(oob[:oobn]); err != nil {
		return m, nil, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("message cut short")
	} else {
		err = json.Unmarshal(c.buf[:n], &m)
	}
	if err != nil {
		closeAll(fds)
		return m, nil, fmt.Errorf("receive: %w", err)
	}
	return m, fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range list {
		if some, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, some...)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// byRole pairs descriptors with what they are for.
func byRole(roles []role, fds []int) (map[role]int, error) {
	if len(roles) != len(fds) {
		closeAll(fds)
		return nil, fmt.Errorf("%d descriptors for %d roles", len(fds), len(roles))
	}
	m := make(map[role]int, len(fds))
	for i, r := range roles {
		m[r] = fds[i]
	}
	return m, nil
}

func (e *LaunchError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%s exited with code %d", e.Argv0, e.Code)
	}
	return strings.TrimSpace(e.Text)
}
