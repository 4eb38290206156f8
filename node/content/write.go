package content

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/blob"
)

// maxRef bounds what a client calls an ingest.
const maxRef = 16 << 10

// WriteRequest is what a client says of content before it writes.
type WriteRequest struct {
	// Ref is what it calls the ingest: one that is there already is gone on
	// with.
	Ref string
	// Total and Expected are 0 and "" where they are not known. Only Commit
	// holds the content against them.
	Total    int64
	Expected digest.Digest
	// Lease, "" for none, is to hold the ingest, and then the content.
	Lease string
}

// Writer writes one ingest, which nobody else can meanwhile. Close it in any
// case; what was written stays for who opens it again. Not for concurrent use.
type Writer struct {
	set       *Set
	namespace string
	lease     string
	in        *ingest
	file      *blob.Writer // nil while it shares a blob
	closed    bool
}

// Writer opens an ingest. What another namespace has need not be written: such
// a Writer stands at the end at once. Exists: the expected content is here;
// then it belongs to the lease. Unavailable: somebody else is writing it.
// NotFound: no such lease. Invalid: no ref, or one that is too long.
func (s *Set) Writer(ctx context.Context, namespace string, req WriteRequest) (_ *Writer, err error) {
	if req.Ref == "" || len(req.Ref) > maxRef {
		return nil, errs.New(errs.Invalid, "ref of %d bytes: want 1 to %d", len(req.Ref), maxRef)
	}
	if req.Expected != "" {
		if err := s.offer(ctx, namespace, req); err != nil {
			return nil, err
		}
	}
	release := s.Leases.Hold(namespace, ingestOf(req.Ref))
	defer release()
	in, isNew, err := s.reserve(namespace, req)
	if err != nil {
		return nil, err
	}
	w := &Writer{set: s, namespace: namespace, lease: req.Lease, in: in}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
			if isNew {
				err = errors.Join(err, s.abort(namespace, req.Ref))
			}
		}
	}()
	if req.Lease != "" {
		if err := s.Leases.AddSoon(namespace, req.Lease, ingestOf(req.Ref)); err != nil {
			return nil, err
		}
	}
	if in.Shared == "" {
		if err := w.open(ctx, req); err != nil {
			return nil, err
		}
	}
	if isNew {
		kept := *in
		s.DB.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, ingestBucket, ingestRecord(namespace, &kept), kept) })
	}
	return w, nil
}

// offer answers Exists where the expected content is here, and leases it.
func (s *Set) offer(ctx context.Context, namespace string, req WriteRequest) error {
	r := contentOf(req.Expected)
	defer s.Leases.Hold(namespace, r)()
	_, err := s.Info(ctx, namespace, req.Expected)
	if err != nil {
		if _, dangling := s.recorded(namespace, req.Expected); dangling && errors.Is(err, errs.NotFound) {
			return s.forget(ctx, namespace, req.Expected) // its bytes were lost: they may come again
		}
		return nil
	}
	s.Claim(ctx, namespace, req.Expected)
	if req.Lease != "" {
		if err := s.Leases.Add(ctx, namespace, req.Lease, r); err != nil {
			return err
		}
	}
	return errs.New(errs.Exists, "content %s: already exists", req.Expected)
}

// reserve finds or makes the ingest, for this writer alone.
func (s *Set) reserve(namespace string, req WriteRequest) (in *ingest, isNew bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, now := ingestKey{namespace, req.Ref}, time.Now()
	in = s.ingests[key]
	switch {
	case in != nil && in.writing:
		return nil, false, in.lockedError()
	case in != nil:
		in.writing, in.since = true, now
		return in, false, nil
	}
	in = &ingest{Ref: req.Ref, Name: rand.Text(), Total: req.Total, Started: now, Updated: now, writing: true, since: now}
	if req.Lease == "" {
		in.Until = now.Add(aDay)
	}
	if info, err := s.Blobs.Info(req.Expected); err == nil && (req.Total == 0 || req.Total == info.Size) {
		in.Shared, in.Total, in.Offset = req.Expected, info.Size, info.Size
		s.held[req.Expected]++
	}
	s.ingests[key] = in
	return in, true, nil
}

// open opens the file of an ingest; what is there of another total is not of
// this content.
func (w *Writer) open(ctx context.Context, req WriteRequest) (err error) {
	algorithm := digest.Canonical
	if req.Expected.Validate() == nil { // what is no digest is told at Commit
		algorithm = req.Expected.Algorithm()
	}
	if w.file, err = w.set.Blobs.Named(ctx, w.in.Name, algorithm); err != nil {
		return err
	}
	w.set.mu.Lock()
	other := req.Total > 0 && w.in.Total > 0 && req.Total != w.in.Total
	if w.in.Total == 0 || other {
		w.in.Total = req.Total
	}
	w.set.mu.Unlock()
	if other {
		return w.Truncate(ctx)
	}
	w.told()
	return nil
}

// told notes how far the file has come.
func (w *Writer) told() {
	w.set.mu.Lock()
	defer w.set.mu.Unlock()
	w.in.Offset = w.file.Offset()
}

// Status is how far it has come.
func (w *Writer) Status() Status {
	w.set.mu.Lock()
	defer w.set.mu.Unlock()
	return w.in.status()
}

// Digest is that of what was written.
func (w *Writer) Digest() digest.Digest {
	if w.file == nil {
		return w.Status().Expected
	}
	return w.file.Digest()
}

// Write appends. On a full disk it is Exhausted, and what fits stays.
func (w *Writer) Write(ctx context.Context, p []byte) (int, error) {
	if w.closed {
		return 0, errWriterClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if w.file == nil {
		if err := w.unshare(ctx, true); err != nil {
			return 0, err
		}
	}
	n, err := w.file.Write(p)
	w.set.mu.Lock()
	w.in.Offset, w.in.Updated = w.file.Offset(), time.Now()
	w.set.mu.Unlock()
	return n, err
}

// Truncate begins anew.
func (w *Writer) Truncate(ctx context.Context) error {
	if w.closed {
		return errWriterClosed
	}
	if w.file == nil {
		return w.unshare(ctx, false)
	}
	if err := w.file.Truncate(); err != nil {
		return err
	}
	w.told()
	return nil
}

// unshare makes a file of its own out of a shared blob, or an empty one.
func (w *Writer) unshare(ctx context.Context, full bool) error {
	s, d := w.set, w.Status().Expected
	file, err := s.Blobs.Named(ctx, w.in.Name, d.Algorithm())
	if err != nil {
		return err
	}
	if full {
		err = file.Truncate()
		if err == nil {
			err = file.Copy(ctx, d)
		}
	} else {
		err = file.Truncate()
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	w.file = file
	s.mu.Lock()
	w.in.Offset, w.in.Total = file.Offset(), 0
	if w.in.Shared != "" {
		s.release(w.in.Shared)
		w.in.Shared = ""
	}
	kept := *w.in
	s.mu.Unlock()
	s.DB.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, ingestBucket, ingestRecord(w.namespace, &kept), kept) })
	return nil
}

// Close lets go of the ingest, which stays as it is unless it was committed.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	w.set.mu.Lock()
	w.in.writing = false
	gone := w.set.ingests[ingestKey{w.namespace, w.in.Ref}] != w.in
	w.set.mu.Unlock()
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	if gone {
		err = errors.Join(err, w.set.Blobs.DropNamed(w.in.Name)) // aborted meanwhile
	}
	return err
}
