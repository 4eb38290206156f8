// Package events tells containerd's clients what happens on a node: the events
// service, and the exchange behind it.
//
// All subscribers see the events that their filters let through, in the order
// in which they were published. A publisher never waits: each subscriber has a
// buffer of its own, and one that lets it run full is told so and loses its
// subscription, with a clear error instead of a gap.
package events

import (
	"context"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/filters"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/base/errs"
	"berth/face/containerd/wire"
)

// buffered is how many events a subscriber may be behind.
const buffered = 4096

// Exchange hands events on. It implements wire.Publisher.
type Exchange struct {
	log *slog.Logger

	mu          sync.Mutex // makes one order of all events
	subscribers map[*subscriber]struct{}
}

type subscriber struct {
	filter filters.Filter
	events chan *types.Envelope // closed for one that was too slow
}

// New makes an exchange without subscribers.
func New(log *slog.Logger) *Exchange {
	return &Exchange{log: log, subscribers: map[*subscriber]struct{}{}}
}

// Publish tells an event that happened now.
func (x *Exchange) Publish(ctx context.Context, namespace, topic string, event proto.Message) {
	x.PublishAt(ctx, time.Now(), namespace, topic, event)
}

// PublishAt tells an event that happened at some time.
func (x *Exchange) PublishAt(ctx context.Context, at time.Time, namespace, topic string, event proto.Message) {
	packed, err := wire.Pack(event)
	if err == nil {
		err = x.Forward(&types.Envelope{Timestamp: timestamppb.New(at), Namespace: namespace, Topic: topic, Event: packed})
	}
	if err != nil {
		x.log.ErrorContext(ctx, "an event was not told", "topic", topic, "namespace", namespace, "err", err)
	}
}

// Forward hands on an event as it is. A malformed one is errs.Invalid.
func (x *Exchange) Forward(e *types.Envelope) error {
	if err := check(e); err != nil {
		return err
	}
	seen := &adaptor{envelope: e}
	x.mu.Lock()
	defer x.mu.Unlock()
	for s := range x.subscribers {
		if !s.filter.Match(seen) {
			continue
		}
		select {
		case s.events <- e:
		default:
			close(s.events)
			delete(x.subscribers, s)
		}
	}
	return nil
}

// Subscribe gives the events from the call on that any of the filters lets
// through; none lets all through. The sequence ends when ctx does, or with
// errs.Exhausted for a reader that fell too far behind. It can be read once. A
// filter that is not understood is errs.Invalid.
func (x *Exchange) Subscribe(ctx context.Context, filter ...string) (iter.Seq2[*types.Envelope, error], error) {
	parsed, err := filters.ParseAll(filter...)
	if err != nil {
		return nil, errs.New(errs.Invalid, "failed parsing subscription filters: %w", err)
	}
	s := &subscriber{filter: parsed, events: make(chan *types.Envelope, buffered)}
	x.mu.Lock()
	x.subscribers[s] = struct{}{}
	x.mu.Unlock()
	context.AfterFunc(ctx, func() { x.drop(s) })
	return func(yield func(*types.Envelope, error) bool) {
		defer x.drop(s)
		for {
			select {
			case e, open := <-s.events:
				if !open {
					yield(nil, errs.New(errs.Exhausted, "this subscriber is too slow: it was more than %d events behind", buffered))
					return
				}
				if !yield(e, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

func (x *Exchange) drop(s *subscriber) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.subscribers, s)
}

// check says what is wrong with an event from outside.
func check(e *types.Envelope) error {
	if err := wire.Identifier(e.GetNamespace()); err != nil {
		return errs.New(errs.Invalid, "event envelope has invalid namespace: %w", err)
	}
	if err := checkTopic(e.GetTopic()); err != nil {
		return errs.New(errs.Invalid, "envelope topic %q: %w", e.GetTopic(), err)
	}
	if at := e.GetTimestamp(); at == nil || !at.IsValid() {
		return errs.New(errs.Invalid, "timestamp must be set on forwarded event")
	}
	return nil
}

func checkTopic(topic string) error {
	parts, ok := strings.CutPrefix(topic, "/")
	if !ok {
		return errs.New(errs.Invalid, "must start with '/'")
	}
	for part := range strings.SplitSeq(parts, "/") {
		if err := wire.Identifier(part); err != nil {
			return err
		}
	}
	return nil
}

// adaptor lets filters look at an event. Its message is decoded once for all
// of them, if any asks for one of its fields.
type adaptor struct {
	envelope *types.Envelope
	decoded  bool
	fields   interface {
		Field(path []string) (string, bool)
	}
}

// Field implements filters.Adaptor.
func (a *adaptor) Field(path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "namespace":
		return a.envelope.GetNamespace(), a.envelope.GetNamespace() != ""
	case "topic":
		return a.envelope.GetTopic(), a.envelope.GetTopic() != ""
	case "event":
		if !a.decoded {
			a.decoded = true
			a.decode()
		}
		if a.fields != nil {
			return a.fields.Field(path[1:])
		}
	}
	return "", false
}

func (a *adaptor) decode() {
	packed := a.envelope.GetEvent()
	message, err := anypb.UnmarshalNew(&anypb.Any{TypeUrl: "/" + packed.GetTypeUrl(), Value: packed.GetValue()}, proto.UnmarshalOptions{})
	if err != nil {
		return // a type that is not known here: its fields are seen by nobody
	}
	a.fields, _ = message.(interface {
		Field(path []string) (string, bool)
	})
}
