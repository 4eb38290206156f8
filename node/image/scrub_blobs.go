package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/manifest"
	"berth/spec"
)

// partBlob is a blob in what a scrub tells; the other parts are package
// snapshot's.
const partBlob = "blob"

// fromLayer says that a blob was made again.
const fromLayer = "made again from the layer"

// blobs scrubs the blobs, in the order of their digests.
func (r *scrub) blobs(ctx context.Context) error {
	var all []blob.Info
	err := r.set.Blobs.Walk(ctx, func(info blob.Info) error {
		if info.Digest.String() > r.state.Place {
			all = append(all, info)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b blob.Info) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	for _, info := range all {
		what, err := r.checkBlob(ctx, info)
		if isMissing(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if what == "" {
			r.read(partBlob, info.Digest.String(), info.Size)
			continue
		}
		d := spec.Damage{Part: partBlob, Name: info.Digest.String(), What: what, Images: r.set.called(r.by.images[info.Digest])}
		if err := r.mendBlob(ctx, &d, info.Digest); err != nil {
			return err
		}
		r.found(ctx, d, nil)
		r.read(partBlob, info.Digest.String(), info.Size)
	}
	return nil
}

// unreadable begins what is said of a blob that the disk does not give: it may
// do so the next time.
const unreadable = "it cannot be read: "

// checkBlob reads a blob and says what is wrong with it.
func (r *scrub) checkBlob(ctx context.Context, info blob.Info) (what string, err error) {
	f, err := r.set.Blobs.Reader(ctx, info.Digest)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// What counts is what the disk has; and nobody else needs it in memory.
	uncache(f)
	defer uncache(f)
	hash := info.Digest.Algorithm().Hash()
	buf := make([]byte, 256<<10)
	for {
		if err := r.pace(ctx, int64(len(buf))); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		hash.Write(buf[:n])
		switch {
		case errors.Is(err, io.EOF):
			if got := digest.NewDigest(info.Digest.Algorithm(), hash); got != info.Digest {
				return "its content has the digest " + got.String(), nil
			}
			return "", nil
		case err != nil:
			return unreadable + err.Error(), nil
		}
	}
}

// uncache drops what memory holds of a file. Where that fails it is only slower
// to notice.
func uncache(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// mendBlob puts a good blob into the place of a damaged one. Where none can be
// had one with other bytes goes, for it would only be taken for whole. It fails
// only with ctx.
func (r *scrub) mendBlob(ctx context.Context, d *spec.Damage, which digest.Digest) error {
	if !r.repair {
		return nil
	}
	r.set.keeping.begin()
	defer r.set.endKeeping(ctx)
	from, err := r.set.replaceBlob(ctx, which, r.logins)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		d.Repaired, d.Repair = true, from
		return nil
	}
	d.Repair = err.Error()
	if rec := first(r.by.images[which]); rec != nil {
		d.Repair = "pull " + r.set.origin(placed{layer: layer{Descriptor: ocispec.Descriptor{Digest: which}}, image: rec}) + " again: " + d.Repair
	}
	if strings.HasPrefix(d.What, unreadable) {
		return nil
	}
	if err := r.set.Blobs.Delete(ctx, which); err != nil && !isMissing(err) {
		d.Repair += "; " + err.Error()
	}
	r.set.links.forget(which)
	return nil
}

func first(all []*record) *record {
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// replaceBlob writes a blob anew and says where it came from.
func (s *Set) replaceBlob(ctx context.Context, which digest.Digest, logins spec.Logins) (from string, err error) {
	if l, ok := s.layersByDigest()[which]; ok {
		return s.bits(logins).replaceLayer(ctx, l)
	}
	desc, ok := s.describedAs(which)
	if !ok {
		return "", errs.New(errs.NotFound, "no image has it")
	}
	places := s.whereFrom(which)
	var why []error
	for _, p := range places {
		body, err := s.bits(logins).fetchDocument(ctx, p, desc)
		if err == nil {
			_, err = s.Blobs.Ingest(ctx, bytes.NewReader(body), desc.Digest, desc.Size)
		}
		if err == nil {
			s.links.forget(which)
			return repositories([]place{p}), nil
		}
		why = append(why, err)
	}
	if len(why) == 0 {
		return "", errs.New(errs.NotFound, "no registry is known to have it")
	}
	return "", errs.New(errs.KindOf(why[0]), "%s", sentence(why))
}

// describedAs finds the descriptor of a manifest, index or configuration.
func (s *Set) describedAs(which digest.Digest) (ocispec.Descriptor, bool) {
	for _, rec := range s.all() {
		for _, desc := range []ocispec.Descriptor{rec.Target, rec.Manifest, rec.Config} {
			if desc.Digest == which {
				return desc, true
			}
		}
	}
	return ocispec.Descriptor{}, false
}

func (b *bits) fetchDocument(ctx context.Context, p place, desc ocispec.Descriptor) ([]byte, error) {
	repo, err := b.repository(ctx, p)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	if manifest.IsIndex(desc.MediaType) || manifest.IsManifest(desc.MediaType) {
		return repo.Manifest(ctx, desc)
	}
	r, err := repo.Blob(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, manifest.ConfigLimit))
}

// replaceLayer writes the blob of a layer anew: from the layer's own tar where
// that gives the same bytes, else from a registry.
func (b *bits) replaceLayer(ctx context.Context, l placed) (from string, err error) {
	var why []error
	if l.ours() {
		err := b.set.makeBlob(ctx, l)
		if err == nil {
			return fromLayer, nil
		}
		why = append(why, err)
	}
	places := b.set.whereFrom(l.Digest)
	r, err := b.fetch(ctx, l, 0)
	if err == nil {
		_, err = b.set.Blobs.Ingest(ctx, r, l.Digest, l.Size)
		err = errors.Join(err, r.Close())
	}
	if err == nil {
		return repositories(places[:min(len(places), 1)]), nil
	}
	why = append(why, err)
	if !l.ours() && ctx.Err() == nil {
		if err := b.set.makeBlob(ctx, l); err == nil {
			return fromLayer, nil
		}
	}
	return "", errs.New(errs.KindOf(why[0]), "%s", sentence(why))
}
