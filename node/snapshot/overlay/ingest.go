package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// Ingest unpacks layer straight into the folder that it stays in.
func (s *Store) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	id := s.records.NewID()
	unpacked, err := s.unpack(ctx, id, layer)
	if err != nil {
		ctx := context.WithoutCancel(ctx)
		if e := errors.Join(folder.Remove(ctx, s.dirfd, id), s.variants.drop(ctx, unpacked.Linked)); e != nil {
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
	if err := unix.Mkdirat(s.dirfd, id+"/fs", 0o755); err != nil {
		return unpacked, fmt.Errorf("make layer folder: %w", err)
	}
	root, err := unix.Openat(s.dirfd, id+"/fs", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unpacked, fmt.Errorf("open layer folder: %w", err)
	}
	defer unix.Close(root)
	unpacked, err = folder.Unpack(ctx, root, layer, folder.Unpacking{Umask: s.umask, Limit: s.maxLayer, Links: s.variants.links()})
	if err == nil {
		err = writeList(s.dirfd, id, unpacked)
	}
	return unpacked, err
}

func (in *ingest) Size() int64 { return in.Unpacked.Size }

// fresh are the files of a new layer that later ones may share.
type fresh struct {
	id    string
	files []folder.File
}

// share keeps the files of layers for those to come. It does so after the
// layer is committed, for nobody waits for it.
func (s *Store) share(ctx context.Context) {
	for {
		layers := s.sharer.Take(ctx)
		if layers == nil {
			return
		}
		for _, layer := range layers {
			if err := s.variants.keep(ctx, s.dirfd, layer.id, layer.files); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "a layer's files are not shared with later ones", "layer", layer.id, "error", err)
			}
		}
	}
}

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
	rec.ID = in.id // the id that claim chose was never used
	rec.Boot, rec.Opaque = s.boot, in.Opaque
	rec.Usage = &snapshot.Usage{Size: in.Usage.Size, Inodes: in.Usage.Inodes}
	info := s.records.Settle(rec)
	s.sharer.Add(fresh{in.id, in.Fresh})
	in.Fresh, in.Linked = nil, nil
	return snapshot.Committed{Info: info}, nil
}

// fit makes the layer one that stands on parent.
func (s *Store) fit(in *ingest, parent snapshot.Key) error {
	below, err := s.foldersBelow(parent)
	if err != nil {
		return err
	}
	return folder.Fit(s.fs(in.id), in.Unpacked, below)
}

// foldersBelow lists the folders of the chain from parent down, the topmost
// first.
func (s *Store) foldersBelow(parent snapshot.Key) ([]string, error) {
	chain, err := s.chain(parent)
	folders := make([]string, len(chain))
	for i, layer := range chain {
		folders[i] = s.fs(layer.ID)
	}
	return folders, err
}
