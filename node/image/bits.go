package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/reference"
	"berth/image/remote"
	"berth/node/snapshot"
	"berth/spec"
)

// placed is a layer of an image, and where it is unpacked.
type placed struct {
	layer
	key   snapshot.Key
	image *record
}

// bits gives out the parts of images, be they here or not: for push, save and
// what mends. A compressed layer that is not here is fetched from a registry
// that has it, or made again.
type bits struct {
	set    *Set
	layers map[digest.Digest]placed
	logins spec.Logins
	// extra are documents that no store holds; plain are layers as plain tars.
	extra map[digest.Digest][]byte
	plain map[digest.Digest]placed
}

func (s *Set) bits(logins spec.Logins) *bits {
	return &bits{set: s, logins: logins, layers: s.layersByDigest(), extra: map[digest.Digest][]byte{}, plain: map[digest.Digest]placed{}}
}

// Has says whether a blob is here, or is a layer that is unpacked here.
func (b *bits) Has(d digest.Digest) bool {
	_, made := b.extra[d]
	_, plain := b.plain[d]
	_, layer := b.layers[d]
	return made || plain || layer || b.set.Blobs.Has(d)
}

// Read returns a manifest or a configuration.
func (b *bits) Read(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	if body, ok := b.extra[d]; ok {
		return body, nil
	}
	return b.set.Blobs.Read(ctx, d, limit)
}

// Open opens a blob at offset.
func (b *bits) Open(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	r, err := b.set.Blobs.Open(ctx, d, offset)
	if err == nil || !isMissing(err) {
		return r, err
	}
	if body, ok := b.extra[d]; ok {
		return io.NopCloser(bytes.NewReader(body[min(offset, int64(len(body))):])), nil
	}
	if l, ok := b.plain[d]; ok && offset == 0 {
		return b.set.pipeTar(ctx, l), nil
	}
	l, ok := b.layers[d]
	if !ok {
		return nil, err
	}
	return b.reopen(ctx, l, offset)
}

// reopen opens the blob of a layer that is not here any more. What we made we
// make again; else a registry gives it; and if none does, our way to compress
// may be the one that made it.
func (b *bits) reopen(ctx context.Context, l placed, offset int64) (io.ReadCloser, error) {
	var why []error
	if l.ours() {
		r, err := b.remake(ctx, l, offset)
		if err == nil {
			return r, nil
		}
		why = append(why, err)
	}
	r, err := b.fetch(ctx, l, offset)
	if err == nil {
		return r, nil
	}
	why = append(why, err)
	if !l.ours() {
		if r, err = b.remake(ctx, l, offset); err == nil {
			return r, nil
		}
		why = append(why, err)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, errs.New(errs.KindOf(why[0]), "the compressed layer %s is not on this node (registry.blobs is %s) and cannot be had: pull %s again%s, or load it from an archive; tried: %s",
		l.Digest, b.set.Policy, b.set.origin(l), b.set.toKeep(), sentence(why))
}

// toKeep says what makes a pull bring blobs back.
func (s *Set) toKeep() string {
	if s.Policy == Keep {
		return ""
	}
	return " with registry.blobs = \"keep\""
}

// origin says what to pull for a layer: the name of the image in the
// repository where it was, or that repository, or at least the image.
func (s *Set) origin(l placed) string {
	places := s.placesOf(l.Digest)
	for _, p := range places {
		for _, text := range s.shownNames(l.image.Image.ID) {
			if name, err := reference.Parse(text); err == nil && name.Repository() == p.Repository {
				return name.Familiar()
			}
		}
	}
	if len(places) > 0 {
		return "it from " + repositories(places[:1])
	}
	return s.call(l.image)
}

// sentence joins errors in one line.
func sentence(all []error) string {
	texts := make([]string, len(all))
	for i, err := range all {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// remake compresses the layer's tar again and keeps the blob for now.
func (b *bits) remake(ctx context.Context, l placed, offset int64) (io.ReadCloser, error) {
	if err := b.set.makeBlob(ctx, l); err != nil {
		return nil, fmt.Errorf("make it again: %w", err)
	}
	return b.set.Blobs.Open(ctx, l.Digest, offset)
}

func (s *Set) makeBlob(ctx context.Context, l placed) (err error) {
	w, err := s.Blobs.Writer(ctx, l.Digest, l.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	var packed io.WriteCloser = nopCloser{w}
	if l.Digest != l.DiffID {
		packed = blob.Compress(w)
	}
	if err := s.writeTar(ctx, l, packed); err != nil {
		return err
	}
	if err := packed.Close(); err != nil {
		return err
	}
	_, err = w.Commit(ctx)
	return err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// writeTar writes the uncompressed tar of a layer. It fails with Invalid where
// that is not the tar of its diff ID, and with Unsupported where the store has
// no way to write it. A layer that was committed here is written as it was
// then: the same tree always gives the same tar.
func (s *Set) writeTar(ctx context.Context, l placed, w io.Writer) error {
	hash := sha256.New()
	out := io.MultiWriter(w, hash)
	err := errs.New(errs.Unsupported, "this store cannot write the tar of layer %s again", l.DiffID)
	if exact, ok := s.Snapshots.(Exact); ok {
		err = exact.Tar(ctx, l.key, out)
	}
	if errors.Is(err, errs.Unsupported) && l.Made {
		err = s.Snapshots.Diff(ctx, l.key, out)
	}
	if err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, hash); got != l.DiffID {
		return errs.New(errs.Invalid, "layer %s does not give its own tar any more, but %s: berth system scrub says what is damaged", l.DiffID, got)
	}
	return nil
}

// pipeTar reads what writeTar writes.
func (s *Set) pipeTar(ctx context.Context, l placed) io.ReadCloser {
	r, w := io.Pipe()
	p := &piped{PipeReader: r}
	p.writing.Go(func() { w.CloseWithError(s.writeTar(ctx, l, w)) })
	return p
}

type piped struct {
	*io.PipeReader
	writing sync.WaitGroup
}

func (p *piped) Close() error {
	err := p.PipeReader.Close()
	p.writing.Wait()
	return err
}

// fetch asks the registries that have a blob. What it opens at 0 is verified.
func (b *bits) fetch(ctx context.Context, l placed, offset int64) (io.ReadCloser, error) {
	places := b.set.whereFrom(l.Digest)
	if len(places) == 0 {
		return nil, errs.New(errs.NotFound, "no registry is known to have it")
	}
	var why []error
	for _, p := range places {
		r, err := b.fetchFrom(ctx, p, l, offset)
		if err == nil {
			return r, nil
		}
		why = append(why, err)
	}
	return nil, errs.New(errs.KindOf(why[0]), "fetch it again: %s", sentence(why))
}

func (b *bits) fetchFrom(ctx context.Context, p place, l placed, offset int64) (io.ReadCloser, error) {
	repo, err := b.repository(ctx, p)
	if err != nil {
		return nil, err
	}
	r, err := repo.Blob(ctx, l.Descriptor, offset)
	if err != nil {
		repo.Close()
		return nil, err
	}
	if offset == 0 {
		r = blob.Verified(r, l.Digest, l.Size)
	}
	return &fetched{r, repo}, nil
}

// repository opens a place with the login for its registry, if there is one.
func (b *bits) repository(ctx context.Context, p place) (*remote.Repository, error) {
	name, err := p.name()
	if err != nil {
		return nil, err
	}
	access := remote.Access{Insecure: p.Insecure}
	if auth, ok := b.logins[name.Domain()]; ok {
		access.Auth = &auth
	}
	return remote.Open(ctx, b.set.Remote, name, access)
}

// fetched lets go of its registry at the end.
type fetched struct {
	io.ReadCloser
	repo *remote.Repository
}

func (f *fetched) Close() error {
	err := f.ReadCloser.Close()
	f.repo.Close()
	return err
}
