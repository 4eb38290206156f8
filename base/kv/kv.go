// Package kv keeps small records on disk: buckets of keys and values in one
// file, by bbolt, with group commit.
//
// Writers hand in functions; one goroutine runs all that wait in a single
// transaction, so that N concurrent writers share one fsync. A writer whose
// function fails takes nobody down with it: the others are run again without
// it, so a function may run twice and must not keep what it read.
//
// A crash leaves the state before or after a transaction, never between. A
// transaction that changes nothing costs no I/O.
package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"berth/base/errs"
)

// laterDelay bounds how long a write handed to Later may wait for company.
const laterDelay = 100 * time.Millisecond

// retryMost is the longest wait after commits that failed, as on a full disk,
// unless an Update comes before.
const retryMost = 10 * time.Second

// DB is an open file of records.
type DB struct {
	bolt      *bbolt.DB
	committer sync.WaitGroup
	wake      chan struct{} // holds one token while there is something to commit now

	mu     sync.Mutex
	calls  []*call
	later  []postponed
	timer  *time.Timer
	failed int // commits one after the other that found no room, or the like
	closed bool
	lost   error // what Later's functions failed with
}

// postponed is what Later was given.
type postponed struct {
	fn      func(*Tx) error
	durable func() // nil where nobody wants to know
}

type call struct {
	fn   func(*Tx) error
	done chan error
}

// Open opens the file at path and makes it if need be. It fails with
// errs.Conflict if another process has it open.
func Open(path string) (*DB, error) {
	bolt, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:        50 * time.Millisecond,
		FreelistType:   bbolt.FreelistMapType,
		NoFreelistSync: true, // a freelist read back at open costs less than one written at every commit
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errs.New(errs.Conflict, "%s is in use by another process", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	d := &DB{bolt: bolt, wake: make(chan struct{}, 1)}
	d.committer.Go(d.commitLoop)
	return d, nil
}

// Close commits what Later still holds and closes the file. It returns the
// errors that functions handed to Later failed with, and why what they wrote
// could not be committed.
func (d *DB) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	d.signal()
	d.committer.Wait()
	err := d.bolt.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.lost, err)
}

// Update runs fn in a transaction and returns once it is durable. It fails
// with fn's error, with errs.Exhausted on a full disk, or with
// errs.Unavailable after Close.
func (d *DB) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{fn: fn, done: make(chan error, 1)}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errs.New(errs.Unavailable, "the record store is closed")
	}
	d.calls = append(d.calls, c)
	d.mu.Unlock()
	d.signal()
	return <-c.done // not given up half way: the caller must know whether it is durable
}

// Later runs fn in the next transaction, within 100 ms; where that fails, as on
// a full disk, again by and by, and with each Update. It is for records that
// another durable write follows or that can be found out again.
func (d *DB) Later(fn func(*Tx) error) { d.LaterThen(fn, nil) }

// LaterThen is Later, and calls durable once what fn wrote is: at the expense
// of whoever commits next, so it has to be quick. Where fn fails, it is not
// called.
func (d *DB) LaterThen(fn func(*Tx) error, durable func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.lost = errors.Join(d.lost, errs.New(errs.Unavailable, "the record store is closed"))
		return
	}
	d.later = append(d.later, postponed{fn, durable})
	d.arm()
}

// View runs fn on the records as last committed; what Later holds is not
// seen yet.
func (d *DB) View(fn func(*Tx) error) error {
	return d.bolt.View(func(tx *bbolt.Tx) error { return fn(&Tx{bolt: tx}) })
}

func (d *DB) signal() {
	select {
	case d.wake <- struct{}{}:
	default: // the committer has yet to take the last token: it will see us
	}
}

func (d *DB) commitLoop() {
	for range d.wake {
		d.mu.Lock()
		calls, later, closed := d.calls, d.later, d.closed
		d.calls, d.later = nil, nil
		if d.timer != nil {
			d.timer.Stop()
			d.timer = nil
		}
		d.mu.Unlock()

		d.commit(calls, later)
		if closed {
			return
		}
	}
}

// errUnchanged ends a transaction that needs no commit.
var errUnchanged = errors.New("nothing changed")

// commit runs all functions in one transaction and answers the callers.
func (d *DB) commit(calls []*call, later []postponed) {
	for len(calls)+len(later) > 0 {
		failed, failedLater := -1, -1
		err := d.bolt.Update(func(bolt *bbolt.Tx) error {
			tx := &Tx{bolt: bolt}
			for i, p := range later {
				if err := p.fn(tx); err != nil {
					failedLater = i
					return err
				}
			}
			for i, c := range calls {
				if err := c.fn(tx); err != nil {
					failed = i
					return err
				}
			}
			if !tx.changed {
				return errUnchanged
			}
			return nil
		})
		switch {
		case errors.Is(err, errUnchanged):
			err = nil
		case failedLater >= 0:
			d.lose(err)
			later = without(later, failedLater)
			continue
		case failed >= 0:
			calls[failed].done <- err
			calls = without(calls, failed)
			continue
		case errors.Is(err, syscall.ENOSPC):
			err = errs.New(errs.Exhausted, "write records: %w", err)
		case err != nil:
			err = fmt.Errorf("write records: %w", err)
		}
		if err != nil && len(later) > 0 {
			d.keep(later, err)
		}
		for _, c := range calls {
			c.done <- err
		}
		if err == nil {
			d.recovered()
			tell(later)
		}
		return
	}
}

func tell(later []postponed) {
	for _, p := range later {
		if p.durable != nil {
			p.durable()
		}
	}
}

func (d *DB) lose(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost = errors.Join(d.lost, err)
}

// keep puts functions back that a failed commit took along: the next commit
// tries them again, if there is one.
func (d *DB) keep(later []postponed, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.lost = errors.Join(d.lost, fmt.Errorf("%d postponed writes are lost: %w", len(later), why))
		return
	}
	d.later = append(later, d.later...)
	d.failed++
	d.rearm()
}

// recovered notes that commits succeed. What Later was given meanwhile waits no
// longer than ever.
func (d *DB) recovered() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed > 0 {
		d.failed = 0
		d.rearm()
	}
}

func (d *DB) rearm() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.arm()
}

// arm makes sure that what Later holds is committed in time. mu is held.
func (d *DB) arm() {
	if d.timer != nil || len(d.later) == 0 {
		return
	}
	delay := min(laterDelay<<min(d.failed, 10), retryMost)
	d.timer = time.AfterFunc(delay, d.signal)
}

func without[T any](s []T, i int) []T { return append(s[:i:i], s[i+1:]...) }

// Tx reads and writes records; it is valid while the function that got it
// runs.
type Tx struct {
	bolt    *bbolt.Tx
	changed bool
}

// Get returns the value of key, nil if there is none. The caller must not
// change it or keep it.
func (tx *Tx) Get(bucket, key string) []byte {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.Get([]byte(key))
}

// Put sets the value of key.
func (tx *Tx) Put(bucket, key string, value []byte) error {
	b, err := tx.bolt.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	if old := b.Get([]byte(key)); old != nil && bytes.Equal(old, value) {
		return nil
	}
	tx.changed = true
	return b.Put([]byte(key), value)
}

// Delete removes key; none is no error.
func (tx *Tx) Delete(bucket, key string) error {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil || b.Get([]byte(key)) == nil {
		return nil
	}
	tx.changed = true
	return b.Delete([]byte(key))
}

// Each calls fn for the keys that begin with prefix, in order, until it
// fails. fn must not write to the bucket.
func (tx *Tx) Each(bucket, prefix string, fn func(key string, value []byte) error) error {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	cursor := b.Cursor()
	for k, v := cursor.Seek([]byte(prefix)); k != nil; k, v = cursor.Next() {
		if len(k) < len(prefix) || string(k[:len(prefix)]) != prefix {
			return nil
		}
		if err := fn(string(k), v); err != nil {
			return err
		}
	}
	return nil
}

// PutJSON sets the value of key to v as JSON.
func PutJSON(tx *Tx, bucket, key string, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record %s/%s: %w", bucket, key, err)
	}
	return tx.Put(bucket, key, value)
}

// GetJSON returns the value of key, decoded from JSON.
func GetJSON[T any](tx *Tx, bucket, key string) (v T, found bool, err error) {
	value := tx.Get(bucket, key)
	if value == nil {
		return v, false, nil
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return v, false, fmt.Errorf("decode record %s/%s: %w", bucket, key, err)
	}
	return v, true, nil
}

// EachJSON is Each with values decoded from JSON.
func EachJSON[T any](tx *Tx, bucket, prefix string, fn func(key string, v T) error) error {
	return tx.Each(bucket, prefix, func(key string, value []byte) error {
		var v T
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("decode record %s/%s: %w", bucket, key, err)
		}
		return fn(key, v)
	})
}
