package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// segment is one file of a log, kept open: it can be read to its end even
// after it has been rotated away.
type segment struct {
	file   *os.File
	inode  uint64
	offset int64 // of the next record to be read
}

func openSegment(path string) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	inode, _, err := identify(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segment{file: f, inode: inode}, nil
}

// segments opens the files of the log at path that are newer than the one
// with the inode last (0: all), oldest first. A rotation meanwhile would put
// files that are newer among older ones: then it looks again.
func segments(path string, last uint64) ([]*segment, error) {
	for {
		before, err := newest(path)
		if err != nil {
			return nil, err
		}
		list, err := walk(path, last)
		if err != nil {
			return nil, err
		}
		after, err := newest(path)
		if err == nil && after == before {
			slices.Reverse(list)
			return list, nil
		}
		closeSegments(list)
		if err != nil {
			return nil, err
		}
	}
}

// place is which file of a log has which name: each rotation changes that of
// the newest one.
type place struct {
	number int
	inode  uint64
}

// newest finds the newest file of the log at path. A rotation under way, or one
// that was never finished, leaves the first name free.
func newest(path string) (place, error) {
	for n := range 2 {
		info, err := os.Stat(Rotated(path, n))
		if err == nil {
			return place{n, inodeOf(info)}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return place{}, fmt.Errorf("read log: %w", err)
		}
	}
	return place{}, nil
}

// walk opens the files from the newest to the oldest, so that a rotation under
// way hides none.
func walk(path string, last uint64) (list []*segment, err error) {
	missing := 0 // in a row; a rotation under way leaves one
	for n := 0; missing < 2; n++ {
		s, err := openSegment(Rotated(path, n))
		if errors.Is(err, fs.ErrNotExist) {
			missing++
			continue
		}
		if err != nil {
			closeSegments(list)
			return nil, fmt.Errorf("read log: %w", err)
		}
		missing = 0
		if s.inode == last {
			return list, s.file.Close()
		}
		if slices.ContainsFunc(list, func(o *segment) bool { return o.inode == s.inode }) { // renamed meanwhile
			_ = s.file.Close()
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

func closeSegments(list []*segment) {
	for _, s := range list {
		_ = s.file.Close()
	}
}

// maxGarbage bounds what is kept of a line that is no record.
const maxGarbage = 1 << 20

// read calls fn for each whole record from s.offset on. A record at the end
// that is not whole yet is left for the next call, which reads it anew.
func (s *segment) read(buf *[]byte, fn func(Line) error) error {
	for {
		n, err := s.file.ReadAt(*buf, s.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read log: %w", err)
		}
		data := (*buf)[:n]
		for {
			i := bytes.IndexByte(data, '\n')
			if i < 0 {
				break
			}
			line, err := parse(data[:i])
			data = data[i+1:]
			s.offset += int64(i + 1)
			if err != nil {
				continue // somebody else wrote into the log
			}
			if err := fn(line); err != nil {
				return err
			}
		}
		switch full := n == len(*buf); {
		case !full:
			return s.shrunk()
		case len(data) == n && n >= maxGarbage:
			s.offset += int64(n) // no record is that long
		case len(data) == n:
			*buf = make([]byte, 4*n)
		}
	}
}

// shrunk starts over after somebody has truncated the file.
func (s *segment) shrunk() error {
	if _, size, err := identify(s.file); err == nil && size < s.offset {
		s.offset = 0
	}
	return nil
}

// tail finds the segment with which the last n lines begin, and moves its
// offset there. It reads backwards from the end and no more than it must.
func tail(list []*segment, n int) (first int, err error) {
	started := false
	for i, s := range slices.Backward(list) {
		_, size, err := identify(s.file)
		if err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
		offset, found := s.offset, false
		err = backwards(s.file, s.offset, size, func(at int64, partial bool) bool {
			// A line ends with a whole record, or is the last and unended.
			if !partial || !started {
				if n == 0 {
					offset, found = at, true
					return false
				}
				n--
			}
			started = true
			return true
		})
		if err != nil {
			return 0, err
		}
		if found {
			s.offset = offset
			return i, nil
		}
	}
	return 0, nil
}

// backwards calls fn with the end of each record between from and to, last
// first, until it returns false.
func backwards(f io.ReaderAt, from, to int64, fn func(end int64, partial bool) bool) error {
	const block = 64 << 10
	var rest []byte // the beginning of what was read last: the end of a record
	for end := to; end > from; {
		start := max(from, end-block)
		data := make([]byte, end-start, int(end-start)+len(rest))
		if n, err := f.ReadAt(data, start); err != nil && n < len(data) {
			return fmt.Errorf("read log backwards: %w", err)
		}
		data = append(data, rest...)
		stop := bytes.LastIndexByte(data, '\n') + 1 // past it a record is being written
		for stop > 0 {
			i := bytes.LastIndexByte(data[:stop-1], '\n')
			if i < 0 && start > from {
				break // its beginning lies in the block before
			}
			line, err := parse(data[i+1 : stop-1])
			if err == nil && !fn(start+int64(stop), line.Partial) {
				return nil
			}
			stop = i + 1
		}
		if rest = data[:stop]; len(rest) > maxGarbage {
			rest = nil
		}
		end = start
	}
	return nil
}
