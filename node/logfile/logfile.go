// Package logfile writes and reads container logs in the CRI format, one
// record a line:
//
//	2006-01-02T15:04:05.000000000Z stdout F text
//
// F ends a line of output, P says that the line goes on in the next record
// of the same stream.
package logfile

import (
	"context"
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

// Position is a place in a log across rotations: "<inode>:<offset>".
type Position string

// Query says what of a log is wanted.
type Query struct {
	From         Position // "": the oldest kept record
	Skip         int64    // bytes of output to skip (Text, and the newline of a line that is not Partial)
	Since, Until time.Time
	Tail         int             // the last n lines; -1: all. Zero is zero
	Follow       bool            // go on as the file grows
	Ended        <-chan struct{} // closed when no more will be written: Follow stops at the end
}

// End returns the position after the last record now.
func End(path string) (Position, error) { return "", errs.Unsupported }

// Read calls fn for every line of the log at path, rotated files first.
func Read(ctx context.Context, path string, q Query, fn func(Line) error) error {
	return errs.Unsupported
}
