package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"berth/base/errs"
)

// LogOptions says what of a log is wanted.
type LogOptions struct {
	Since, Until time.Time
	Tail         int  // the last so many lines; -1 for all of them, 0 for none
	Follow       bool // go on until the container has ended
}

// LogLine is one record of a log.
type LogLine struct {
	Time    time.Time
	Stderr  bool
	Partial bool   // the line of output goes on in the next record of its stream
	Text    []byte // without the newline; valid until fn returns
}

// ContainerLogs gives the container's output to fn. With Follow it ends when
// the container has ended and all is read, and outlives a node that goes away
// and comes back.
func (c *Client) ContainerLogs(ctx context.Context, ref string, opts LogOptions, fn func(LogLine) error) error {
	l := logReading{client: c, ref: ref, opts: opts, fn: fn}
	if !opts.Follow {
		return plain(ctx, l.try(ctx, func() {}))
	}
	return outlive(ctx, func(alive func()) error { return l.try(ctx, alive) })
}

// logReading is one ContainerLogs. After a cut it asks again from the time of
// the last record, and drops those records of just that time that it had.
type logReading struct {
	client *Client
	ref    string
	opts   LogOptions
	fn     func(LogLine) error

	last time.Time // of the records given to fn
	same int       // how many of them have that time
}

func (l *logReading) try(ctx context.Context, alive func()) error {
	drop := 0
	if !l.last.IsZero() {
		l.opts.Since, l.opts.Tail = l.last, -1
		drop = l.same
	}
	q := query{}.time("since", l.opts.Since).time("until", l.opts.Until).flag("follow", l.opts.Follow).num("tail", &l.opts.Tail)
	resp, err := l.client.send(ctx, request{method: http.MethodGet, path: at("containers", l.ref, "logs"), query: q.values()})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	alive()
	if id := resp.Header.Get(containerHeader); id != "" {
		l.ref = id
	}
	body := bufio.NewReaderSize(resp.Body, 256<<10)
	for {
		record, err := readRecord(body)
		if errors.Is(err, io.EOF) && len(record) == 0 {
			return trailerProblem(resp)
		}
		if err != nil {
			return l.client.unreachable(ctx, err)
		}
		line, err := parseRecord(record)
		if err != nil {
			return err
		}
		if drop > 0 && line.Time.Equal(l.last) {
			drop--
			continue
		}
		alive()
		if err := l.give(line); err != nil {
			return err
		}
	}
}

func (l *logReading) give(line LogLine) error {
	if err := l.fn(line); err != nil {
		return &callerError{err}
	}
	if line.Time.Equal(l.last) {
		l.same++
	} else {
		l.last, l.same = line.Time, 1
	}
	return nil
}

// containerHeader names the container's full id on answers about its log.
const containerHeader = "Berth-Container"

// readRecord reads one line, which lives in r's buffer unless it is long.
func readRecord(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	long := bytes.Clone(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.ReadSlice('\n')
		long = append(long, line...)
	}
	return long, err
}

// parseRecord reads "<time> stdout|stderr F|P <text>\n".
func parseRecord(record []byte) (LogLine, error) {
	record = bytes.TrimSuffix(record, []byte("\n"))
	stamp, rest, _ := bytes.Cut(record, []byte(" "))
	stream, rest, _ := bytes.Cut(rest, []byte(" "))
	tag, text, found := bytes.Cut(rest, []byte(" "))
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil || !found {
		return LogLine{}, errs.New(errs.Internal, "the node sent what is no log record: %s", strconv.Quote(string(record[:min(80, len(record))])))
	}
	return LogLine{Time: at, Stderr: string(stream) == "stderr", Partial: string(tag) == "P", Text: text}, nil
}
