package lease_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"berth/base/kv"
	"berth/node/lease"
)

// A pass over 1,000 images of ten layers, all of them alive.
func BenchmarkCollect(b *testing.B) {
	db, err := kv.Open(filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	o := &things{}
	for n := range 1000 {
		labels := []string{}
		for l := range 10 {
			id := fmt.Sprint(n, " ", l)
			labels = append(labels, fmt.Sprint(label, "ref.content.l.", l), id)
			o.put(thing("content", id))
			o.put(refers(thing(lcfs, id), lease.Resource{Kind: lcfs, ID: fmt.Sprint(n, " ", l-1)}))
		}
		o.put(thing("content", fmt.Sprint(n), append(labels, label+"ref.snapshot.lcfs", fmt.Sprint(n, " ", 9))...))
		o.put(refers(rooted(thing("images", fmt.Sprint(n))), lease.Resource{Kind: "content", ID: fmt.Sprint(n)}))
	}
	s, err := lease.Open(lease.Config{DB: db})
	if err != nil {
		b.Fatal(err)
	}
	s.Own(o)
	for b.Loop() {
		if err := s.Collect(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	if len(o.left()) != 22000 {
		b.Error(len(o.left()), "left")
	}
}
