package content

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/lease"
)

// Status is how far an ingest has come.
type Status struct {
	Ref      string
	Offset   int64
	Total    int64 // 0: not told
	Expected digest.Digest
	Started  time.Time
	Updated  time.Time
}

type ingestKey struct{ namespace, ref string }

// ingest is content in the making. Guarded by Set.mu, but for Name.
type ingest struct {
	Ref     string        `json:"ref"`
	Name    string        `json:"-"` // in the blob store
	Total   int64         `json:"total,omitempty"`
	Started time.Time     `json:"started"`
	Updated time.Time     `json:"-"`                // while it is written
	Offset  int64         `json:"-"`                // so far
	Until   time.Time     `json:"until"`            // when it goes, where no lease holds it
	Shared  digest.Digest `json:"shared,omitempty"` // a blob that is here, of which nothing was written yet
	writing bool
	since   time.Time // when writing began
}

func (s *Set) loadIngests(tx *kv.Tx) error {
	var lost []string
	err := kv.EachJSON(tx, ingestBucket, "", func(key string, in ingest) error {
		namespace, name, _ := strings.Cut(key, "/")
		in.Name = name
		st, err := s.Blobs.NamedInfo(name)
		switch {
		case err == nil:
			in.Offset, in.Updated = st.Size(), st.ModTime()
			if in.Shared != "" { // it has a file of its own since, which the record was too late to say
				in.Shared, in.Total = "", 0
			}
		case in.Shared != "" && s.Blobs.Has(in.Shared):
			info, err := s.Blobs.Info(in.Shared)
			if err != nil {
				return err
			}
			in.Offset, in.Updated = info.Size, in.Started
			s.held[in.Shared]++
		case errors.Is(err, errs.NotFound):
			lost = append(lost, key)
			return nil
		default:
			return err
		}
		s.ingests[ingestKey{namespace, in.Ref}] = &in
		return nil
	})
	if len(lost) > 0 {
		s.DB.Later(func(tx *kv.Tx) error { return deleteAll(tx, lost) })
	}
	return err
}

func deleteAll(tx *kv.Tx, keys []string) error {
	for _, key := range keys {
		if err := tx.Delete(ingestBucket, key); err != nil {
			return err
		}
	}
	return nil
}

// dropStray removes what no record names.
func (s *Set) dropStray() error {
	names, err := s.Blobs.EachNamed()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, in := range s.ingests {
		known[in.Name] = true
	}
	for _, name := range names {
		if !known[name] {
			err = errors.Join(err, s.Blobs.DropNamed(name))
		}
	}
	return err
}

// Status tells of one ingest. NotFound: there is none.
func (s *Set) Status(_ context.Context, namespace, ref string) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.ingests[ingestKey{namespace, ref}]
	if in == nil {
		return Status{}, missingRef(ref)
	}
	return in.status(), nil
}

// Statuses tells of the ingests of a namespace, by their refs.
func (s *Set) Statuses(_ context.Context, namespace string) []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for key, in := range s.ingests {
		if key.namespace == namespace {
			all = append(all, in.status())
		}
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Ref, b.Ref) })
	return all
}

func (in *ingest) status() Status {
	return Status{Ref: in.Ref, Offset: in.Offset, Total: in.Total, Expected: in.Shared, Started: in.Started, Updated: in.Updated}
}

// Abort forgets an ingest and what was written. Who writes it can no longer
// commit. NotFound: there is none.
func (s *Set) Abort(ctx context.Context, namespace, leased, ref string) error {
	if err := s.abort(namespace, ref); err != nil {
		return err
	}
	s.letGo(ctx, namespace, leased, ref)
	return nil
}

func (s *Set) abort(namespace, ref string) error {
	s.mu.Lock()
	key := ingestKey{namespace, ref}
	in := s.ingests[key]
	if in == nil {
		s.mu.Unlock()
		return missingRef(ref)
	}
	s.unlist(key, in)
	s.mu.Unlock()
	s.DB.Later(func(tx *kv.Tx) error { return tx.Delete(ingestBucket, ingestRecord(namespace, in)) })
	return s.Blobs.DropNamed(in.Name)
}

// unlist forgets an ingest in memory. mu is held.
func (s *Set) unlist(key ingestKey, in *ingest) {
	if s.ingests[key] == in {
		delete(s.ingests, key)
	}
	if in.Shared != "" {
		s.release(in.Shared)
		in.Shared = ""
	}
}

// letGo takes an ingest that is over from its lease.
func (s *Set) letGo(ctx context.Context, namespace, leased, ref string) {
	if leased == "" {
		return
	}
	err := s.Leases.DropSoon(namespace, leased, ingestOf(ref))
	if err != nil && !errors.Is(err, errs.NotFound) && s.Log != nil {
		s.Log.WarnContext(ctx, "a lease names an ingest that is over", "lease", leased, "err", err)
	}
}

func missingRef(ref string) error {
	return errs.New(errs.NotFound, "reference %.256s: not found", ref)
}

func ingestRecord(namespace string, in *ingest) string { return namespace + "/" + in.Name }

// lockedError is worded as clients know it.
func (in *ingest) lockedError() error {
	return errs.New(errs.Unavailable, "ref %.256s locked for %s (since %s): unavailable", in.Ref, time.Since(in.since).Round(time.Millisecond), in.since.UTC().Format(time.RFC3339))
}

var errWriterClosed = fmt.Errorf("cannot write or commit on closed writer: %w", errs.Conflict)

var _ lease.Owner = (*Set)(nil)
