package copy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/folder"
	"berth/node/snapshot"
)

// ingest is a layer in its folder, named by no record yet.
type ingest struct {
	store *Store
	id    string
	folder.Unpacked

	mu   sync.Mutex
	done bool // committed or dropped
}

// Ingest unpacks layer into the folder that it stays in.
func (s *Store) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	id := s.records.NewID()
	unpacked, err := s.unpack(ctx, id, layer)
	if err != nil {
		if e := folder.Remove(context.WithoutCancel(ctx), s.dirfd, id); e != nil {
			s.log.ErrorContext(ctx, "layer is kept for the next start to delete", "layer", id, "error", e)
		}
		return nil, fmt.Errorf("unpack layer: %w", errs.Full(err))
	}
	return &ingest{store: s, id: id, Unpacked: unpacked}, nil
}

func (s *Store) unpack(ctx context.Context, id string, layer io.Reader) (unpacked folder.Unpacked, err error) {
	if err := unix.Mkdirat(s.dirfd, id, 0o700); err != nil {
		return unpacked, fmt.Errorf("make layer folder: %w", err)
	}
	if err := unix.Mkdirat(s.dirfd, id+"/"+layerFolder, 0o755); err != nil {
		return unpacked, fmt.Errorf("make layer folder: %w", err)
	}
	err = s.inside(id+"/"+layerFolder, func(root int) error {
		unpacked, err = folder.Unpack(ctx, root, layer, folder.Unpacking{Umask: s.umask, Limit: s.maxLayer})
		return err
	})
	return unpacked, err
}

func (in *ingest) Size() int64 { return in.Unpacked.Size }

// Abort drops the layer.
func (in *ingest) Abort(context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.done {
		in.done = true
		in.store.sweeper.Add(in.id)
	}
	return nil
}

// Commit names the layer. Folders that its tar only implied get the looks
// that they have in the parent.
func (in *ingest) Commit(ctx context.Context, name, parent snapshot.Key, labels map[string]string) (snapshot.Committed, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.done {
		return snapshot.Committed{}, errs.New(errs.Conflict, "commit layer %s: it is committed or dropped already", name)
	}
	s := in.store
	rec, err := s.records.Claim(ctx, snapshot.KindCommitted, name, parent, labels)
	if err == nil {
		if err = s.fit(in, parent); err != nil {
			s.records.Release(rec)
		}
	}
	if errors.Is(err, errs.Exists) {
		in.done = true
		s.sweeper.Add(in.id)
	}
	if err != nil {
		return snapshot.Committed{}, fmt.Errorf("commit layer: %w", errs.Full(err))
	}
	in.done = true
	rec.ID = in.id // the id that Claim chose was never used
	rec.Boot, rec.Opaque = s.boot, in.Opaque
	rec.Usage = &snapshot.Usage{Size: in.Usage.Size, Inodes: in.Usage.Inodes}
	rec.Own = map[string]string{layerMark: "1"}
	return snapshot.Committed{Info: s.records.Settle(rec)}, nil
}

// fit makes the layer one that stands on parent.
func (s *Store) fit(in *ingest, parent snapshot.Key) error {
	below, err := s.foldersBelow(parent)
	if err != nil {
		return err
	}
	return folder.Fit(filepath.Join(s.dir, in.id, layerFolder), in.Unpacked, below)
}

// foldersBelow lists the folders that make up the tree of parent, the topmost
// first: layers, down to the first that is a whole tree.
func (s *Store) foldersBelow(parent snapshot.Key) ([]string, error) {
	chain, err := s.records.Chain(parent, func(rec *snapshot.Record) bool { return rec.Opaque || !isLayer(rec) })
	folders := make([]string, len(chain))
	for i, rec := range chain {
		folders[i] = filepath.Join(s.dir, rec.ID, ownTree)
		if isLayer(rec) {
			folders[i] = filepath.Join(s.dir, rec.ID, layerFolder)
		}
	}
	return folders, err
}
