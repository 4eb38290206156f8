package rest

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"berth/base/errs"
	"berth/spec"
)

type eventQuery struct {
	Chosen
	Since time.Time `query:"since" doc:"RFC 3339; from now on when absent"`
	Until time.Time `query:"until" doc:"RFC 3339; without end when absent"`
	After string    `header:"Last-Event-ID" doc:"go on after the event of that id"`
}

func (r *routes) events() {
	op := gives(r.operation("GET /events", "Events", "Tell what happens on the node"), "text/event-stream",
		"Server-sent events. The data of each is an event; one of type problem ends the stream.", schemaOf[spec.Event](r.api))
	stream(r, op, r.server.tellEvents)
}

func (s *Server) tellEvents(w http.ResponseWriter, r *http.Request, in *eventQuery) {
	filter, err := in.filter()
	var after eventID
	if err == nil && in.After != "" {
		after, err = parseEventID(in.After)
		in.Since = after.time
	}
	var events iter.Seq2[spec.Event, error]
	if err == nil {
		events, err = s.Events.Subscribe(r.Context(), in.Since, in.Until, filter)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.lines(w, r, "text/event-stream", func(out *lineWriter) error {
		if in.After == "" && in.Since.IsZero() { // an id to come back with, before there is an event
			if err := out.event(eventID{time: time.Now()}.String(), "", nil); err != nil {
				return err
			}
		}
		return s.sendEvents(r, out, events, after)
	})
}

func (s *Server) sendEvents(r *http.Request, out *lineWriter, events iter.Seq2[spec.Event, error], after eventID) error {
	for ev, err := range events {
		if err != nil {
			data, _ := json.Marshal(s.problem(r.Context(), err).Problem)
			return out.event("", "problem", data)
		}
		if ev.Time.Equal(after.time) && ev.Seq <= after.seq {
			continue // had before the connection broke
		}
		data, err := json.Marshal(ev)
		if err != nil {
			return errs.New(errs.Internal, "encode an event: %w", err)
		}
		if err := out.event(eventID{ev.Time, ev.Seq}.String(), "", data); err != nil {
			return err
		}
	}
	return nil
}

func (l *lineWriter) event(id, kind string, data []byte) error {
	var b []byte
	if id != "" {
		b = fmt.Appendf(b, "id: %s\n", id)
	}
	if kind != "" {
		b = fmt.Appendf(b, "event: %s\n", kind)
	}
	if data != nil {
		b = fmt.Appendf(b, "data: %s\n", data)
	}
	return l.box.put(0, b, newline)
}

// eventID is the place of an event. Seq alone would not do: it starts over
// with the node.
type eventID struct {
	time time.Time
	seq  uint64
}

func (e eventID) String() string { return fmt.Sprintf("%d-%d", e.time.UnixNano(), e.seq) }

func parseEventID(s string) (eventID, error) {
	stamp, number, _ := strings.Cut(s, "-")
	nanos, err := strconv.ParseInt(stamp, 10, 64)
	seq, err2 := strconv.ParseUint(number, 10, 64)
	if err != nil || err2 != nil {
		return eventID{}, errs.New(errs.Invalid, "Last-Event-ID %q is none of ours: leave it out to begin now", s)
	}
	return eventID{time.Unix(0, nanos), seq}, nil
}
