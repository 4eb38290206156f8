package content_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth/base/kv"
	"berth/node/content"
)

// A process that is killed when an ingest has just got a file of its own, and
// the record still says that it shares a blob, leaves nothing that takes the
// blob from who has it.
func TestKilledWhenNoLongerShared(t *testing.T) {
	w := newWorld(t)
	body := []byte("what both have")
	d := w.put("one", body)
	wr, err := w.Writer(t.Context(), "two", content.WriteRequest{Ref: "again", Expected: d, Total: int64(len(body))})
	w.must(err)
	w.must(w.db.Update(t.Context(), func(*kv.Tx) error { return nil }))
	records, err := os.ReadFile(filepath.Join(w.root, "db"))
	w.must(err)
	w.must(wr.Truncate(t.Context()))
	_, err = wr.Write(t.Context(), body[:4])
	w.must(err)
	w.must(wr.Close())
	w.close()
	w.must(os.WriteFile(filepath.Join(w.root, "db"), records, 0o600))
	w.open()

	wr, err = w.Writer(t.Context(), "two", content.WriteRequest{Ref: "again", Expected: d, Total: int64(len(body))})
	w.must(err)
	if at := wr.Status().Offset; at < int64(len(body)) {
		_, err = wr.Write(t.Context(), body[at:])
		w.must(err)
	}
	_, err = wr.Commit(t.Context(), int64(len(body)), d, nil)
	w.must(err)
	w.must(w.Delete(t.Context(), "one", d))
	if dropped, err := w.Drop(t.Context(), d); dropped || err != nil {
		t.Errorf("a blob that a namespace has was dropped: %v, %v", dropped, err)
	}
	if _, err := w.Open(t.Context(), "two", d); err != nil {
		t.Error(err)
	}
}
