package lease_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/base/errs"
	"berth/node/lease"
)

// things is an owner of all kinds.
type things struct {
	mu      sync.Mutex
	all     map[string]lease.Item
	order   []string // of removal
	listed  func()   // called when all has been told
	removal func(key string) error
}

func keyOf(namespace string, r lease.Resource) string { return namespace + " " + r.Kind + " " + r.ID }

func (o *things) put(items ...lease.Item) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = map[string]lease.Item{}
	}
	for _, i := range items {
		if i.Namespace == "" {
			i.Namespace = "n"
		}
		o.all[keyOf(i.Namespace, i.Resource)] = i
	}
}

func (o *things) Items(_ context.Context, fn func(lease.Item)) error {
	o.mu.Lock()
	for _, i := range o.all {
		fn(i)
	}
	listed := o.listed
	o.mu.Unlock()
	if listed != nil {
		listed()
	}
	return nil
}

func (o *things) Remove(_ context.Context, namespace string, r lease.Resource) error {
	key := keyOf(namespace, r)
	if o.removal != nil {
		if err := o.removal(key); err != nil {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.all[key]; !ok {
		return errs.New(errs.NotFound, "%s", key)
	}
	delete(o.all, key)
	o.order = append(o.order, key)
	return nil
}

func (o *things) left() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for key := range o.all {
		all = append(all, key)
	}
	slices.Sort(all)
	return all
}

func thing(kind, id string, labels ...string) lease.Item {
	i := lease.Item{Resource: lease.Resource{Kind: kind, ID: id}, Labels: map[string]string{}}
	for n := 0; n < len(labels); n += 2 {
		i.Labels[labels[n]] = labels[n+1]
	}
	return i
}

func rooted(i lease.Item) lease.Item { i.Root = true; return i }

func refers(i lease.Item, refs ...lease.Resource) lease.Item { i.Refs = refs; return i }

const (
	label = "containerd.io/gc."
	lcfs  = "snapshots/lcfs"
)

func collect(t *testing.T, s *lease.Set) {
	t.Helper()
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, o *things, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := o.left(); !slices.Equal(got, want) {
		t.Errorf("left are\n\t%q, want\n\t%q", got, want)
	}
}

func TestReferences(t *testing.T) {
	past, future := time.Now().Add(-time.Hour).Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339)
	res := func(kind, id string) lease.Resource { return lease.Resource{Kind: kind, ID: id} }
	for _, tt := range []struct {
		name  string
		items []lease.Item
		want  []string
	}{
		{"nothing refers", []lease.Item{thing("content", "a"), thing(lcfs, "s"), thing("ingests", "i")}, nil},
		{
			"an image and what its labels name",
			[]lease.Item{
				refers(rooted(thing("images", "i")), res("content", "index")),
				thing("content", "index", label+"ref.content.m.0", "manifest"), thing("content", "manifest", label+"ref.content.config", "config", label+"ref.content.l.0", "layer"),
				thing("content", "config", label+"ref.snapshot.lcfs", "top"), thing("content", "layer"),
				refers(thing(lcfs, "top"), res(lcfs, "below")), thing(lcfs, "below"), thing(lcfs, "other"), thing("content", "other"),
			},
			[]string{"n images i", "n content index", "n content manifest", "n content config", "n content layer", "n " + lcfs + " top", "n " + lcfs + " below"},
		},
		{
			"labels that are none",
			[]lease.Item{
				rooted(thing("images", "i", label+"ref.contents", "a", label+"ref.content.", "", label+"ref.snapshot", "s", label+"ref.snapshot.", "s", "gc.ref.content", "a", label+"ref.snapshot.other", "s", label+"ref.container", "c")),
				thing("content", "a"), thing(lcfs, "s"), thing("containers", "c"),
			},
			[]string{"n images i"},
		},
		{
			"names behind a dot or a slash",
			[]lease.Item{
				rooted(thing("images", "i", label+"ref.content", "a", label+"ref.content/x", "b", label+"ref.content.x.y", "c", label+"ref.snapshot.lcfs/q", "s", label+"ref.image.x", "j")),
				thing("content", "a"), thing("content", "b"), thing("content", "c"), thing(lcfs, "s"), thing("images", "j"), thing("images", "k"),
			},
			[]string{"n images i", "n content a", "n content b", "n content c", "n " + lcfs + " s", "n images j"},
		},
		{
			"roots by label",
			[]lease.Item{thing("content", "a", label+"root", "yes", label+"ref.content.0", "b"), thing("content", "b"), thing(lcfs, "s", label+"root.x", "1"), thing("content", "c", "x"+label+"root", "1")},
			[]string{"n content a", "n content b", "n " + lcfs + " s"},
		},
		{
			"references back",
			[]lease.Item{
				rooted(thing("containers", "c")), thing("content", "of", label+"bref.container.x", "c"), thing("content", "of2", label+"bref.content", "of"),
				thing(lcfs, "s", label+"bref.content.y", "of2"), thing("content", "x", label+"bref.snapshot.lcfs", "s"), thing("content", "lost", label+"bref.image", "none"),
			},
			[]string{"n containers c", "n content of", "n content of2", "n " + lcfs + " s", "n content x"},
		},
		{
			"names that expire",
			[]lease.Item{
				refers(rooted(thing("images", "old", label+"expire", past)), res("content", "a")), thing("content", "a"),
				refers(rooted(thing("images", "new", label+"expire", future)), res("content", "b")), thing("content", "b"),
				rooted(thing("images", "odd", label+"expire", "tomorrow")),
			},
			[]string{"n images new", "n content b", "n images odd"},
		},
		{
			"other namespaces",
			[]lease.Item{
				refers(rooted(thing("images", "i")), res("content", "a")), thing("content", "a"),
				{Namespace: "m", Resource: res("content", "a")},
			},
			[]string{"n images i", "n content a"},
		},
		{
			"references on a condition",
			[]lease.Item{
				rooted(thing("images", "i", label+"cond.snapshot.lcfs/1", "usedat<2h|recent", label+"cond.snapshot.lcfs/2", "usedat<1m|old", label+"cond.snapshot.lcfs/3", "usedat<1m,usedat>30m|either",
					label+"cond.snapshot.lcfs/4", "usedat<2h|never", label+"cond.snapshot.lcfs/5", "usedat<x,usedat=2h,used<2h,|recent2", label+"cond.snapshot", "usedat<2h|recent2", label+"cond.snapshot.lcfs/6", "recent2")),
				thing(lcfs, "recent", label+"cond.value-usedat", past), thing(lcfs, "old", label+"cond.value-usedat", past), thing(lcfs, "either", label+"cond.value-usedat", past),
				thing(lcfs, "never", label+"cond.value-usedat", "yesterday"), thing(lcfs, "recent2", label+"cond.value-usedat", past),
				thing("content", "c", label+"cond.snapshot.lcfs", "usedat<2h|recent3"), thing(lcfs, "recent3", label+"cond.value-usedat", past),
			},
			[]string{"n images i", "n " + lcfs + " recent", "n " + lcfs + " either"},
		},
		{"rings", []lease.Item{refers(thing("content", "a"), res("content", "b")), refers(thing("content", "b"), res("content", "a"))}, nil},
		{"an ingest for a day", []lease.Item{{Resource: res("ingests", "i"), Until: time.Now().Add(time.Hour)}, {Resource: res("ingests", "j"), Until: time.Now().Add(-time.Second)}}, []string{"n ingests i"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &things{}
			o.put(tt.items...)
			collect(t, open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o))
			expect(t, o, tt.want...)
		})
	}
}

func TestLeasesHold(t *testing.T) {
	o := &things{}
	s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
	a, b, c := "sha256:"+fmt.Sprintf("%064d", 1), "sha256:"+fmt.Sprintf("%064d", 2), "sha256:"+fmt.Sprintf("%064d", 3)
	fill := func() {
		o.put(
			thing("content", a, label+"ref.content.0", b), thing("content", b), thing("content", c),
			refers(thing(lcfs, "top", label+"ref.content.0", c), lease.Resource{Kind: lcfs, ID: "below"}), thing(lcfs, "below"),
			thing("ingests", "r"), refers(thing("images", "i"), lease.Resource{Kind: "content", ID: a}),
		)
	}
	for _, tt := range []struct {
		name   string
		labels map[string]string
		holds  []lease.Resource
		want   []string
	}{
		{"content", nil, []lease.Resource{{Kind: "content", ID: a}}, []string{"n content " + a, "n content " + b}},
		{"flat content", map[string]string{label + "flat": "1"}, []lease.Resource{{Kind: "content", ID: a}}, []string{"n content " + a}},
		{"snapshot", nil, []lease.Resource{{Kind: lcfs, ID: "top"}}, []string{"n " + lcfs + " top", "n " + lcfs + " below", "n content " + c}},
		{"flat snapshot", map[string]string{label + "flat": "1"}, []lease.Resource{{Kind: lcfs, ID: "top"}}, []string{"n " + lcfs + " top", "n " + lcfs + " below"}},
		{"flat image", map[string]string{label + "flat": "1"}, []lease.Resource{{Kind: "images", ID: "i"}}, []string{"n images i", "n content " + a}},
		{"ingest", nil, []lease.Resource{{Kind: "ingests", ID: "r"}}, []string{"n ingests r"}},
		{"expired", map[string]string{label + "expire": time.Now().Add(-time.Minute).Format(time.RFC3339)}, []lease.Resource{{Kind: "content", ID: a}}, nil},
		{"expired and flat", map[string]string{label + "flat": "1", label + "expire": time.Now().Add(-time.Minute).Format(time.RFC3339)}, []lease.Resource{{Kind: "content", ID: a}}, nil},
		{"expires", inAnHour(), []lease.Resource{{Kind: "content", ID: b}}, []string{"n content " + b}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fill()
			if _, err := s.Create(t.Context(), "n", tt.name, tt.labels); err != nil {
				t.Fatal(err)
			}
			for _, r := range tt.holds {
				if err := s.Add(t.Context(), "n", tt.name, r); err != nil {
					t.Fatal(err)
				}
			}
			collect(t, s)
			expect(t, o, tt.want...)
			if tt.want == nil {
				_, err := s.Get("n", tt.name)
				kinds(t, err, errs.NotFound)
				return
			}
			if err := s.Delete(t.Context(), "n", tt.name); err != nil {
				t.Fatal(err)
			}
			collect(t, s)
			expect(t, o)
		})
	}
}

// What refers to others goes before them.
func TestOrder(t *testing.T) {
	o := &things{}
	s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
	for n := range 50 {
		o.put(refers(thing(lcfs, fmt.Sprint(n)), lease.Resource{Kind: lcfs, ID: fmt.Sprint(n + 1)}, lease.Resource{Kind: lcfs, ID: fmt.Sprint(n + 7)}))
	}
	collect(t, s)
	for n := range 50 {
		if want := "n " + lcfs + " " + fmt.Sprint(n); len(o.order) != 50 || o.order[n] != want {
			t.Fatal(o.order)
		}
	}
}

// What is taken hold of while a collection runs stays, with all below it, at
// whichever moment that is.
func TestHoldMeanwhile(t *testing.T) {
	image := []lease.Item{
		thing("content", "manifest", label+"ref.content.0", "config", label+"ref.content.1", "layer"), thing("content", "config"), thing("content", "layer"),
		thing("content", "a"), thing("content", "b"), thing("content", "c"),
	}
	for _, when := range []string{"before", "told", "removing"} {
		t.Run(when, func(t *testing.T) {
			o := &things{}
			s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
			o.put(image...)
			var release func()
			hold := sync.OnceFunc(func() { release = s.Hold("n", lease.Resource{Kind: "content", ID: "manifest"}) })
			switch when {
			case "before":
				hold()
			case "told":
				o.listed = hold
			case "removing":
				o.removal = func(key string) error {
					if key != "n content manifest" {
						hold()
					}
					return nil
				}
				o.put(thing("content", "first", label+"ref.content.0", "manifest")) // goes before it
			}
			collect(t, s)
			expect(t, o, "n content manifest", "n content config", "n content layer")
			release()
			o.listed, o.removal = nil, nil
			collect(t, s)
			expect(t, o)
		})
	}
}

// Hold waits for a removal of just that.
func TestHoldWaits(t *testing.T) {
	o := &things{}
	s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
	o.put(thing("content", "a"))
	began, goOn := make(chan bool), make(chan bool)
	o.removal = func(string) error { began <- true; <-goOn; return nil }
	collected, held := make(chan error), make(chan func())
	go func() { collected <- s.Collect(context.Background()) }()
	<-began
	s.Hold("n", lease.Resource{Kind: "content", ID: "b"})() // of another it does not
	go func() { held <- s.Hold("n", lease.Resource{Kind: "content", ID: "a"}) }()
	select {
	case <-held:
		t.Error("held while it is removed")
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	(<-held)()
	if err := <-collected; err != nil {
		t.Error(err)
	}
	expect(t, o)
}

func TestRemovalFails(t *testing.T) {
	o := &things{}
	s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
	o.put(thing("content", "bad"), thing("content", "good"), thing(lcfs, "busy", label+"ref.content.0", "its"), thing("content", "its"), thing("content", "gone"))
	broken := errors.New("broken")
	o.removal = func(key string) error {
		switch key {
		case "n content bad":
			return broken
		case "n " + lcfs + " busy":
			return errs.New(errs.Conflict, "busy")
		case "n content gone":
			o.mu.Lock()
			delete(o.all, key)
			o.mu.Unlock()
		}
		return nil
	}
	if err := s.Collect(t.Context()); !errors.Is(err, broken) {
		t.Error(err)
	}
	expect(t, o, "n content bad", "n "+lcfs+" busy", "n content its")
}

// Those who wait for collections share them.
func TestShared(t *testing.T) { synctest.Test(t, testShared) }

func testShared(t *testing.T) {
	o := &things{}
	s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
	passes, first := 0, make(chan bool)
	o.listed = func() {
		if passes++; passes == 1 {
			<-first
		}
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := s.Collect(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	synctest.Wait() // all have asked
	close(first)
	all.Wait()
	if passes > 3 {
		t.Errorf("%d passes for 20 who asked at once", passes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Collect(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &things{}
		s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		o.put(thing("content", "a"))
		time.Sleep(time.Minute)
		expect(t, o, "n content a") // nothing asks for it
		s.Trigger()
		time.Sleep(2 * settleTime)
		expect(t, o)
		id := "sha256:" + fmt.Sprintf("%064d", 7)
		o.put(thing("content", id), refers(rooted(thing("images", "i", label+"expire", time.Now().Add(20*time.Minute).Format(time.RFC3339))), lease.Resource{Kind: "content", ID: "x"}), thing("content", "x"))
		if _, err := s.Create(ctx, "n", "l", map[string]string{label + "expire": time.Now().Add(10 * time.Minute).Format(time.RFC3339)}); err != nil {
			t.Error(err)
		}
		if err := s.Add(ctx, "n", "l", lease.Resource{Kind: "content", ID: id}); err != nil {
			t.Error(err)
		}
		time.Sleep(9 * time.Minute)
		expect(t, o, "n content "+id, "n images i", "n content x")
		time.Sleep(time.Minute + 2*settleTime)
		expect(t, o, "n images i", "n content x")
		time.Sleep(10*time.Minute + 2*settleTime)
		expect(t, o)
		o.put(thing("content", "late"))
		time.Sleep(time.Hour + time.Second)
		expect(t, o) // now and then it looks by itself
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

const settleTime = 150 * time.Millisecond

// A random history of clients who build images under leases and name them,
// with collections all the while: what a name reaches is always whole.
func TestHistory(t *testing.T) {
	o := &things{}
	s := open(t, openDB(t, filepath.Join(t.TempDir(), "db")), o)
	ctx, cancel := context.WithCancel(t.Context())
	var collecting, clients sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	digest := func(n int) string { return fmt.Sprintf("sha256:%064d", n) }
	for client := range 4 {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(client)))
			for round := range 150 {
				id, name := fmt.Sprint(client, " ", round), fmt.Sprint("image ", client)
				if _, err := s.Create(ctx, "n", id, inAnHour()); err != nil {
					t.Error(err)
				}
				layer, manifest := digest(rng.IntN(3)), digest(100+rng.IntN(3)) // clients share them
				for _, i := range []lease.Item{thing("content", layer), thing("content", manifest, label+"ref.content.l.0", layer)} {
					release := s.Hold("n", append(lease.References(i.Labels), i.Resource)...)
					if err := s.Add(ctx, "n", id, i.Resource); err != nil {
						t.Error(err)
					}
					o.put(i)
					release()
				}
				i := refers(rooted(thing("images", name)), lease.Resource{Kind: "content", ID: manifest})
				release := s.Hold("n", append(i.Refs, i.Resource)...)
				o.put(i)
				release()
				if err := s.Delete(ctx, "n", id); err != nil {
					t.Error(err)
				}
				o.mu.Lock()
				for _, key := range []string{"n content " + o.all["n images "+name].Refs[0].ID} {
					m, ok := o.all[key]
					if _, whole := o.all["n content "+m.Labels[label+"ref.content.l.0"]]; !ok || !whole {
						t.Errorf("image %q is not whole: manifest %t, layer %t", name, ok, whole)
					}
				}
				o.mu.Unlock()
			}
		})
	}
	clients.Wait()
	cancel()
	collecting.Wait()
	collect(t, s)
	if n := len(o.left()); n < 3 || n > 10 {
		t.Errorf("%d left: %q", n, o.left())
	}
}

func FuzzLabels(f *testing.F) {
	for _, name := range []string{"ref.content", "ref.content.l.0", "ref.snapshot.overlayfs", "ref.snapshot.a/b", "bref.container.x", "expire", "flat", "root", "ref.image"} {
		f.Add(label+name, "value")
	}
	f.Add("containerd.io/gc.expire", "2026-01-01T00:00:00Z")
	f.Fuzz(func(t *testing.T, name, value string) {
		labels := map[string]string{name: value}
		for _, r := range lease.References(labels) {
			if r.ID != value || r.ID == "" {
				t.Errorf("%q=%q refers to %q", name, value, r)
			}
			if _, ok := lease.Snapshotter(r.Kind); !ok && r.Kind != lease.Content && r.Kind != lease.Images {
				t.Errorf("kind %q", r.Kind)
			}
		}
		if at, ok := lease.Expires(labels); ok == at.IsZero() && value != "0001-01-01T00:00:00Z" {
			t.Errorf("%q=%q: %v %t", name, value, at, ok)
		}
		_ = lease.CheckLabels(labels)
	})
}
