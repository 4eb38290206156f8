package logfile

import (
	"bytes"
	"time"

	"berth/base/errs"
)

// MaxText is the most text one record holds; longer lines become several
// partial records, as the readers of this format expect.
const MaxText = 16 << 10

const (
	stamp  = "2006-01-02T15:04:05.000000000Z"
	prefix = len(stamp) + len(" stdout F ")

	// MaxRecord is the longest record there is, its newline included.
	MaxRecord = prefix + MaxText + 1
)

// Append adds text to dst as whole records, all with the same time, and says
// how much of text it took: no more than fits into room bytes. A last line
// without newline becomes partial. The lengths depend on nothing but text
// and room, so writing the same text to the same place again is harmless.
func Append(dst []byte, room int, at time.Time, s Stream, text []byte) (_ []byte, taken int) {
	var head [prefix]byte
	at.UTC().AppendFormat(head[:0], stamp)
	copy(head[len(stamp):], " "+s.String()+" F ")
	tag := &head[prefix-2]
	for taken < len(text) {
		line, rest := text[taken:min(taken+MaxText, len(text))], 0
		*tag = 'P'
		if i := bytes.IndexByte(text[taken:min(taken+MaxText+1, len(text))], '\n'); i >= 0 {
			line, rest = text[taken:taken+i], 1
			*tag = 'F'
		}
		if room -= prefix + len(line) + 1; room < 0 {
			break
		}
		dst = append(dst, head[:]...)
		dst = append(dst, line...)
		dst = append(dst, '\n')
		taken += len(line) + rest
	}
	return dst, taken
}

// parse reads one record without its newline. A loss of power can leave zeros
// where the end of the log was; the record after them is as good as any.
func parse(record []byte) (Line, error) {
	record = bytes.TrimLeft(record, "\x00")
	when, rest, ok1 := bytes.Cut(record, []byte{' '})
	name, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tags, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok3 { // other writers leave the last space out when there is no text
		tags, text = rest, nil
	}
	if !ok1 || !ok2 {
		return Line{}, errs.New(errs.Invalid, "not a log record: %.60q", record)
	}
	at, err := parseTime(when)
	if err != nil {
		return Line{}, errs.New(errs.Invalid, "log record: %w", err)
	}
	line := Line{Time: at, Text: text}
	switch string(name) {
	case "stdout":
		line.Stream = Stdout
	case "stderr":
		line.Stream = Stderr
	default:
		return Line{}, errs.New(errs.Invalid, "log record: stream %.20q", name)
	}
	// Tags are a list; the first one says whether the line is whole.
	first, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(first) {
	case "F":
	case "P":
		line.Partial = true
	default:
		return Line{}, errs.New(errs.Invalid, "log record: tag %.20q", tags)
	}
	return line, nil
}

// parseTime reads our own fixed form without the cost of time.Parse, and
// any other RFC 3339 time with it.
func parseTime(b []byte) (time.Time, error) {
	if len(b) != len(stamp) || b[len(b)-1] != 'Z' || b[19] != '.' {
		return time.Parse(time.RFC3339Nano, string(b))
	}
	ok := true
	number := func(from, to int) int {
		n := 0
		for _, c := range b[from:to] {
			ok = ok && '0' <= c && c <= '9'
			n = n*10 + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), number(5, 7), number(8, 10)
	hour, minute, second, nano := number(11, 13), number(14, 16), number(17, 19), number(20, 29)
	ok = ok && b[4] == '-' && b[7] == '-' && b[10] == 'T' && b[13] == ':' && b[16] == ':' &&
		1 <= month && month <= 12 && 1 <= day && day <= 28 && hour < 24 && minute < 60 && second < 60
	if !ok { // the end of a month is left to those who know the calendar
		return time.Parse(time.RFC3339Nano, string(b))
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, nano, time.UTC), nil
}
