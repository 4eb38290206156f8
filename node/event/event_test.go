package event_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/base/errs"
	"berth/node/event"
	"berth/spec"
)

func subscribe(t *testing.T, b *event.Bus, since, until time.Time, filter spec.Filter) iter.Seq2[spec.Event, error] {
	t.Helper()
	seq, err := b.Subscribe(t.Context(), since, until, filter)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func collect(seq iter.Seq2[spec.Event, error]) (actions []string, err error) {
	for e, failed := range seq {
		if failed != nil {
			return actions, failed
		}
		actions = append(actions, e.Action)
	}
	return actions, nil
}

func TestNothingIsMissedBetweenSubscribeAndRead(t *testing.T) {
	b := event.New(10)
	b.Publish("container", "create", "c1", nil)
	seq := subscribe(t, b, time.Time{}, time.Time{}, nil)
	b.Publish("container", "start", "c1", map[string]string{"name": "web"})
	for e, err := range seq {
		if err != nil || e.Action != "start" || e.Seq != 2 || e.ID != "c1" || e.Attributes["name"] != "web" || e.Time.IsZero() {
			t.Errorf("%+v, %v", e, err)
		}
		break
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := event.New(10)
		seq := subscribe(t, b, time.Time{}, time.Now().Add(time.Minute), nil)
		var got []string
		var err error
		var readers sync.WaitGroup
		readers.Go(func() { got, err = collect(seq) })
		for i := range 3 {
			time.Sleep(time.Second)
			b.Publish("container", fmt.Sprint("a", i), "c", nil)
		}
		readers.Wait() // until passes
		if err != nil || fmt.Sprint(got) != "[a0 a1 a2]" {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := event.New(4)
		begin := time.Now()
		for i := range 6 {
			time.Sleep(time.Second)
			b.Publish("image", fmt.Sprint(i), "i", nil)
		}
		for _, tt := range []struct {
			since, until time.Duration
			want         string
		}{
			{0, 6 * time.Second, "[2 3 4 5]"}, // as far back as the ring goes
			{5 * time.Second, 6 * time.Second, "[4 5]"},
			{0, 4 * time.Second, "[2 3]"},
			{7 * time.Second, 8 * time.Second, "[]"},
		} {
			got, err := collect(subscribe(t, b, begin.Add(tt.since), begin.Add(tt.until), nil))
			if err != nil || fmt.Sprint(got) != tt.want {
				t.Errorf("%v to %v: %v, %v", tt.since, tt.until, got, err)
			}
		}
	})
}

func TestSlowReaderIsTold(t *testing.T) {
	b := event.New(4)
	seq := subscribe(t, b, time.Time{}, time.Time{}, nil)
	for range 10 {
		b.Publish("container", "start", "c", nil)
	}
	if got, err := collect(seq); len(got) != 0 || !errors.Is(err, errs.Exhausted) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := event.New(4)
		ctx, cancel := context.WithCancel(t.Context())
		seq, err := b.Subscribe(ctx, time.Time{}, time.Time{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		if got, err := collect(seq); len(got) != 0 || err != nil {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestManyReadersAndWriters(t *testing.T) {
	const writers, each = 4, 200
	b := event.New(writers * each)
	var all sync.WaitGroup
	for range 4 {
		seq := subscribe(t, b, time.Time{}, time.Time{}, nil)
		all.Go(func() {
			var last uint64
			for e, err := range seq {
				if err != nil || e.Seq != last+1 {
					t.Errorf("after %d came %+v, %v", last, e, err)
					return
				}
				if last = e.Seq; last == writers*each {
					return
				}
			}
		})
	}
	for range writers {
		all.Go(func() {
			for range each {
				b.Publish("container", "start", "c", nil)
			}
		})
	}
	all.Wait()
}

func TestFilters(t *testing.T) {
	b := event.New(20)
	begin := time.Now()
	b.Publish("container", "start", "c0ffee", map[string]string{"name": "web", "image": "docker.io/library/nginx:1", "tier": "front"})
	b.Publish("container", "health_status: healthy", "beef", map[string]string{"name": "db"})
	b.Publish("image", "pull", "sha256:abc", map[string]string{"name": "docker.io/library/nginx:1"})
	b.Publish("network", "connect", "n1", map[string]string{"name": "back", "container": "c0ffee"})
	b.Publish("volume", "create", "data", nil)
	b.Publish("pod", "stop", "abc1", map[string]string{"name": "front", "namespace": "shop"})
	b.Publish("container", "die", "d1", map[string]string{"name": "shop/front/web", "pod": "abc1"})
	b.Publish("container", "oom", "d2", map[string]string{"name": "bank/front/web", "pod": "abc2"})
	for _, tt := range []struct {
		filter spec.Filter
		want   string
	}{
		{spec.Filter{"type": {"image", "volume"}}, "[pull create]"},
		{spec.Filter{"event": {"health_status"}}, "[health_status: healthy]"},
		{spec.Filter{"container": {"web"}}, "[start]"},
		{spec.Filter{"container": {"c0f"}}, "[start connect]"},
		{spec.Filter{"image": {"docker.io/library/nginx"}}, "[start pull]"},
		{spec.Filter{"image": {"abc"}}, "[pull]"},
		{spec.Filter{"network": {"back"}}, "[connect]"},
		{spec.Filter{"volume": {"data"}}, "[create]"},
		{spec.Filter{"pod": {"abc1"}}, "[stop die]"},
		{spec.Filter{"pod": {"shop/front"}}, "[stop die]"},
		{spec.Filter{"pod": {"front"}, "type": {"container"}}, "[die oom]"},
		{spec.Filter{"pod": {"back", ""}}, "[]"},
		{spec.Filter{"label": {"tier=front"}}, "[start]"},
		{spec.Filter{"label": {"tier", "other"}}, "[]"},
		{spec.Filter{"type": {"container"}, "name": {"db"}}, "[health_status: healthy]"},
	} {
		got, err := collect(subscribe(t, b, begin, time.Now(), tt.filter))
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%v: %v, %v; want %s", tt.filter, got, err, tt.want)
		}
	}
	if _, err := b.Subscribe(t.Context(), time.Time{}, time.Time{}, spec.Filter{"colour": {"red"}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("unknown filter: %v", err)
	}
}

func TestTapSeesAllInOrder(t *testing.T) {
	b := event.New(4) // fewer than there are events: a tap misses none
	var seen []uint64
	b.Publish("container", "create", "before", nil)
	b.Tap(func(e spec.Event) { seen = append(seen, e.Seq) })
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			for range 10 {
				b.Publish("container", "start", "c", nil)
			}
		})
	}
	group.Wait()
	if len(seen) != 100 || !slices.IsSorted(seen) || seen[0] != 2 {
		t.Errorf("a tap saw %v", seen)
	}
}
