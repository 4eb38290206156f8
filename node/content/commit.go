package content

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/lease"
)

// Commit makes what was written a blob of the namespace: durable when it
// returns. size 0 and expected "" are whatever was written. Conflict: it is
// something else, and stays as it is for who opens the ingest again. Exists:
// the namespace has it; the ingest is over. NotFound: the lease, or the ingest,
// is gone. Invalid: a label is too long.
func (w *Writer) Commit(ctx context.Context, size int64, expected digest.Digest, labels map[string]string) (Info, error) {
	if w.closed {
		return Info{}, errWriterClosed
	}
	if err := lease.CheckLabels(labels); err != nil {
		return Info{}, fmt.Errorf("info.Labels: %w", err)
	}
	d, err := w.verify(ctx, size, expected)
	if err != nil {
		return Info{}, err
	}
	if w.file != nil {
		if err := w.file.Sync(); err != nil { // before anybody has to wait for us
			return Info{}, err
		}
	}
	s, own := w.set, contentOf(d)
	defer s.Leases.Hold(w.namespace, own, ingestOf(w.in.Ref))()
	defer s.hold(ctx, w.namespace, labels)()
	defer s.locks.lock(resource{w.namespace, own})()
	if w.lease != "" {
		if err := s.Leases.AddSoon(w.namespace, w.lease, own); err != nil {
			return Info{}, err
		}
	}
	if _, err := s.Info(ctx, w.namespace, d); err == nil {
		s.Claim(ctx, w.namespace, d)
		return Info{}, errors.Join(errs.New(errs.Exists, "content %s: already exists", d), w.end(ctx))
	}
	now := time.Now().UTC()
	info := Info{Digest: d, Labels: lease.WithoutEmpty(labels), Created: now, Updated: now}
	if info.Size, err = w.publish(ctx, d); err != nil {
		return Info{}, err
	}
	err = s.DB.Update(ctx, func(tx *kv.Tx) error {
		return errors.Join(kv.PutJSON(tx, bucket, record(w.namespace, d), info), tx.Delete(ingestBucket, ingestRecord(w.namespace, w.in)))
	})
	if err != nil {
		return Info{}, fmt.Errorf("commit content %s: %w", d, err) // the ingest shares the blob now
	}
	s.mu.Lock()
	s.put(w.namespace, info)
	s.unlist(ingestKey{w.namespace, w.in.Ref}, w.in)
	s.mu.Unlock()
	s.letGo(ctx, w.namespace, w.lease, w.in.Ref)
	err = w.Close()
	s.Created(ctx, w.namespace, info.clone())
	if s.hasNatives(w.namespace) {
		s.Natives.Arrived(ctx, d)
	}
	return info.clone(), err
}

// verify holds what was written against what it should be. The errors are
// worded as clients know them.
func (w *Writer) verify(ctx context.Context, size int64, expected digest.Digest) (digest.Digest, error) {
	st := w.Status()
	if size != 0 && size != st.Offset {
		return "", errs.New(errs.Conflict, "%.256q failed size validation: %d != %d: failed precondition", st.Ref, st.Offset, size)
	}
	if expected == "" {
		return w.Digest(), nil
	}
	if w.file != nil && expected.Validate() == nil && expected.Algorithm() != w.file.Algorithm() {
		if err := w.file.Rehash(ctx, expected.Algorithm()); err != nil {
			return "", err
		}
	}
	if d := w.Digest(); d != expected {
		return "", errs.New(errs.Conflict, "unexpected commit digest %s, expected %.140s: failed precondition", d, expected)
	}
	return expected, nil
}

// publish puts the bytes in place. The blob cannot be dropped from then on:
// the ingest holds it.
func (w *Writer) publish(ctx context.Context, d digest.Digest) (size int64, err error) {
	s, key := w.set, ingestKey{w.namespace, w.in.Ref}
	s.mu.Lock()
	listed := s.ingests[key] == w.in
	if listed && w.in.Shared == "" {
		s.held[d]++
		w.in.Shared = d
	}
	s.mu.Unlock()
	if !listed {
		return 0, missingRef(w.in.Ref)
	}
	if w.file == nil {
		info, err := s.Blobs.Info(d)
		return info.Size, err
	}
	info, err := w.file.Commit(ctx)
	if err != nil {
		s.mu.Lock()
		if w.in.Shared == d {
			s.release(d)
			w.in.Shared = ""
		}
		s.mu.Unlock()
	}
	return info.Size, err
}

// end forgets an ingest whose content is here already.
func (w *Writer) end(ctx context.Context) error {
	err := w.Close()
	if abortErr := w.set.abort(w.namespace, w.in.Ref); !errors.Is(abortErr, errs.NotFound) {
		err = errors.Join(err, abortErr)
	}
	w.set.letGo(ctx, w.namespace, w.lease, w.in.Ref)
	return err
}
