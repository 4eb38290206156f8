// Package logfile writes and reads container logs in the CRI format, one
// record a line:
//
//	2006-01-02T15:04:05.000000000Z stdout F text
//
// F ends a line of output, P says that the line goes on in the next record
// of the same stream. The log is one total order of both streams, in files
// that are rotated by renaming: path is the newest, path.1 the one before.
package logfile

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"berth/base/errs"
)

// Stream is stdout or stderr.
type Stream uint8

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// Line is one record.
type Line struct {
	Time    time.Time
	Stream  Stream
	Partial bool   // the output line goes on in the next record of this stream
	Text    []byte // without the newline; valid until fn returns
}

// Position is a place between records, which rotation does not change:
// "<inode>:<offset>".
type Position string

// Query says what of a log is wanted.
type Query struct {
	From         Position // "", or a place in a file that is gone: the oldest kept record
	Skip         int64    // bytes of output to skip (Text, and the newline of a line that is not Partial)
	Since, Until time.Time
	Tail         int             // the last n lines; -1: all. Zero is zero
	Follow       bool            // go on as the log grows, until ctx is done, Until has passed, or:
	Ended        <-chan struct{} // closed when no more will be written: Follow stops at the end
}

// End returns the position after the last record now, "" for a log that does
// not exist yet.
func End(path string) (Position, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("end of log: %w", err)
	}
	defer f.Close()
	inode, size, err := identify(f)
	if err != nil {
		return "", fmt.Errorf("end of log: %w", err)
	}
	// The last record may just be being written.
	buf := make([]byte, min(size, int64(MaxRecord)))
	n, err := f.ReadAt(buf, size-int64(len(buf)))
	if err != nil && err != io.EOF { //nolint:errorlint // ReaderAt promises io.EOF itself
		return "", fmt.Errorf("end of log: %w", err)
	}
	if i := strings.LastIndexByte(string(buf[:n]), '\n'); i >= 0 || int64(n) == size {
		size += int64(i + 1 - n)
	}
	return position(inode, size), nil
}

func position(inode uint64, offset int64) Position {
	return Position(strconv.FormatUint(inode, 10) + ":" + strconv.FormatInt(offset, 10))
}

func (p Position) parse() (inode uint64, offset int64, err error) {
	a, b, ok := strings.Cut(string(p), ":")
	inode, err1 := strconv.ParseUint(a, 10, 64)
	offset, err2 := strconv.ParseInt(b, 10, 64)
	if !ok || err1 != nil || err2 != nil || offset < 0 {
		return 0, 0, errs.New(errs.Invalid, "log position %q is not <inode>:<offset>", string(p))
	}
	return inode, offset, nil
}
