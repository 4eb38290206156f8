package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"berth/image/blob"
	"berth/node/snapshot"
	"berth/spec"
)

// Chain returns the snapshot that containers of the image stand on. Layers
// that were lost, as a loss of power can do, are unpacked again: from their
// blobs, or where those are not kept from the registry that had them.
func (s *Set) Chain(ctx context.Context, imageID string) (snapshot.Key, error) {
	rec, err := s.find(imageID)
	if err != nil {
		return "", err
	}
	return s.restore(ctx, rec, s.fromAnywhere(rec.Layers, nil))
}

// restore makes sure that the layers of an image are there.
func (s *Set) restore(ctx context.Context, rec *record, open opener) (snapshot.Key, error) {
	keys := chain(rec.Layers)
	if len(keys) == 0 {
		return "", nil
	}
	top := keys[len(keys)-1]
	if _, err := s.Snapshots.Stat(ctx, top); err == nil {
		return top, nil
	}
	if n := len(rec.Early); n > 0 {
		if _, err := s.Snapshots.Stat(ctx, rec.Early[n-1]); err == nil {
			return rec.Early[n-1], nil
		}
	}
	s.keeping.begin()
	defer s.endKeeping(ctx)
	if _, err := s.unpack(ctx, unpacking{layers: rec.Layers, open: open, report: func(spec.Progress) {}}); err != nil {
		return "", fmt.Errorf("unpack image %s again: %w", rec.Image.ID, err)
	}
	s.settleChain(ctx, top)
	return top, nil
}

// patience bounds how long Repair waits for registries.
const patience = time.Minute

// Repair unpacks again what a loss of power took from the images. It is quick
// where nothing is lost; call it before containers are started. Registries
// are asked only for what is not here, and not for long.
func (s *Set) Repair(ctx context.Context) error {
	var lost []*record
	for _, rec := range s.all() {
		if rec.Given {
			continue // it may never have been unpacked: Chain sees to it
		}
		if _, err := s.restore(ctx, rec, s.fromBlobs(rec.Layers)); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			lost = append(lost, rec)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, rec := range lost {
		if _, err := s.restore(limited, rec, s.fromAnywhere(rec.Layers, nil)); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.Log.ErrorContext(ctx, "layers of an image are lost: pull it again", "image", rec.Image.ID, "name", s.call(rec), "error", err)
		}
	}
	return nil
}

// settleChain lets the store make the chain of an image ready. That it could
// not is no failure: the chain works as it is.
func (s *Set) settleChain(ctx context.Context, top snapshot.Key) {
	settler, ok := s.Snapshots.(Settler)
	if !ok || top == "" {
		return
	}
	if err := settler.Settle(ctx, top); err != nil && ctx.Err() == nil {
		s.Log.WarnContext(ctx, "layers are not as fast as they could be", "top", string(top), "error", err)
	}
}

// fromBlobs opens layers out of the blob store.
func (s *Set) fromBlobs(layers []layer) opener {
	return func(ctx context.Context, n int) (tarStream, error) {
		f, err := s.Blobs.Reader(ctx, layers[n].Digest)
		if err != nil {
			return nil, err
		}
		tar, _, err := blob.Uncompress(f, s.MaxLayer)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &storedTar{tar, f}, nil
	}
}

// fromAnywhere opens layers out of the blob store, or from a registry.
func (s *Set) fromAnywhere(layers []layer, logins spec.Logins) opener {
	stored, parts := s.fromBlobs(layers), s.bits(logins)
	return func(ctx context.Context, n int) (tarStream, error) {
		tar, err := stored(ctx, n)
		if !isMissing(err) {
			return tar, err
		}
		return s.fetchTar(ctx, parts, placed{layer: layers[n]})
	}
}

// fetchTar opens the tar of a layer out of a registry.
func (s *Set) fetchTar(ctx context.Context, parts *bits, l placed) (tarStream, error) {
	packed, err := parts.fetch(ctx, l, 0)
	if err != nil {
		return nil, err
	}
	plain, _, err := blob.Uncompress(packed, s.MaxLayer)
	if err != nil {
		return nil, errors.Join(err, packed.Close())
	}
	return &fetchedTar{plain, packed}, nil
}

// storedTar is the tar of a blob that is here. It was verified when it came.
type storedTar struct {
	io.ReadCloser
	blob io.Closer
}

func (*storedTar) Finish() error  { return nil }
func (t *storedTar) Close() error { return errors.Join(t.ReadCloser.Close(), t.blob.Close()) }

// fetchedTar is the tar of a blob that passes by.
type fetchedTar struct {
	io.ReadCloser
	blob io.ReadCloser
}

// Finish reads to the end, where the blob is verified.
func (t *fetchedTar) Finish() error {
	if _, err := io.Copy(io.Discard, t.ReadCloser); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, t.blob)
	return err
}

func (t *fetchedTar) Close() error { return errors.Join(t.ReadCloser.Close(), t.blob.Close()) }
