package lease_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"berth/base/kv"
	"berth/node/lease"
)

// A lease that is made anew while the one of its name that has expired is
// being collected stays.
func TestMadeAgain(t *testing.T) {
	db, err := kv.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := lease.Open(lease.Config{DB: db})
	if err != nil {
		t.Fatal(err)
	}
	expired := map[string]string{"containerd.io/gc.expire": time.Now().Add(-time.Hour).Format(time.RFC3339)}
	if _, err := s.Create(t.Context(), "n", "x", expired); err != nil {
		t.Fatal(err)
	}
	o := &things{}
	o.listed = sync.OnceFunc(func() {
		if err := s.Delete(t.Context(), "n", "x"); err != nil {
			t.Error(err)
		}
		if _, err := s.Create(t.Context(), "n", "x", nil); err != nil {
			t.Error(err)
		}
	})
	s.Own(o)
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("n", "x"); err != nil {
		t.Error("the new lease went with the old one:", err)
	}
}
