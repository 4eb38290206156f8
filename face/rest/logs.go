package rest

import (
	"context"
	"net/http"
	"time"

	"berth/base/errs"
	"berth/node/logfile"
	"berth/spec"
)

// containerHeader names the full id of the container that an answer is about.
const containerHeader = "Berth-Container"

// recordTime is the form of times in log records, of one width.
const recordTime = "2006-01-02T15:04:05.000000000Z"

type logQuery struct {
	Named
	Since  time.Time     `query:"since" doc:"RFC 3339"`
	Until  time.Time     `query:"until" doc:"RFC 3339"`
	Tail   optional[int] `query:"tail" doc:"the last so many lines; negative or absent: all"`
	Follow bool          `query:"follow" doc:"go on until the container has ended"`
}

func (q *logQuery) query() logfile.Query {
	tail := -1
	if q.Tail.set {
		tail = max(q.Tail.value, -1)
	}
	return logfile.Query{Since: q.Since, Until: q.Until, Tail: tail, Follow: q.Follow}
}

// logs sends CRI log records: "<time> stdout|stderr F|P <text>".
func (s *Server) logs(w http.ResponseWriter, r *http.Request, in *logQuery) {
	c, err := s.Containers.Get(r.Context(), in.Ref)
	if err == nil && !in.Until.IsZero() && in.Until.Before(in.Since) {
		err = errs.New(errs.Invalid, "until %s is before since %s", in.Until, in.Since)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set(containerHeader, c.ID)
	s.lines(w, r, "text/plain; charset=utf-8", func(out *lineWriter) error {
		var head [64]byte
		return s.Containers.Logs(r.Context(), c.ID, in.query(), func(l logfile.Line) error {
			return out.box.put(0, appendRecordHead(head[:0], l), l.Text, newline)
		})
	})
}

var newline = []byte("\n")

func appendRecordHead(b []byte, l logfile.Line) []byte {
	b = l.Time.UTC().AppendFormat(b, recordTime)
	if l.Stream == logfile.Stderr {
		b = append(b, " stderr "...)
	} else {
		b = append(b, " stdout "...)
	}
	if l.Partial {
		return append(b, "P "...)
	}
	return append(b, "F "...)
}

type statsQuery struct {
	Refs   []string `query:"ref,explode" doc:"containers; all running ones when absent"`
	Stream bool     `query:"stream" doc:"again each second, as NDJSON of {\"stats\": …}"`
}

// statsLine is one line of a stream of statistics.
type statsLine struct {
	Stats []spec.Stats  `json:"stats,omitempty"`
	Error *spec.Problem `json:"error,omitempty"`
}

const statsInterval = time.Second

func (s *Server) statsStream(w http.ResponseWriter, r *http.Request, refs []string) {
	first, err := s.Containers.Stats(r.Context(), refs)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.lines(w, r, ndjson, func(out *lineWriter) error {
		return s.repeatStats(r.Context(), out, refs, first)
	})
}

func (s *Server) repeatStats(ctx context.Context, out *lineWriter, refs []string, stats []spec.Stats) error {
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	for {
		if err := out.value(statsLine{Stats: stats}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		var err error
		stats, err = s.Containers.Stats(ctx, refs)
		if ended := len(refs) > 0 && (len(stats) == 0 || errs.KindOf(err) == errs.NotFound || errs.KindOf(err) == errs.Conflict); ended {
			return nil
		}
		if err != nil {
			return out.value(statsLine{Error: &s.problem(ctx, err).Problem})
		}
	}
}
