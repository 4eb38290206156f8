package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// errEnough ends a stretch of a scrub, so that what was found is repaired.
var errEnough = errors.New("enough was found")

// stretch is how much damage is found at most before it is repaired: what one
// layer gives back may be many of the things found.
const stretch = 256

// store scrubs what the store of snapshots keeps.
func (r *scrub) store(ctx context.Context) error {
	scrubber, ok := r.set.Snapshots.(Scrubber)
	if !ok {
		r.state.Note = "unpacked layers were not checked: on this driver they are folders without digests"
		return nil
	}
	for {
		var damaged []snapshot.Checked
		err := scrubber.Scrub(ctx, r.state.Place, r.pace, func(c snapshot.Checked) error {
			if c.Damage == "" {
				r.read(string(c.Part), c.Place, c.Size)
				return nil
			}
			r.state.Place = c.Place
			damaged = append(damaged, c)
			if len(damaged) == stretch || r.save != nil { // a place that is kept has nothing open before it
				return errEnough
			}
			return nil
		})
		if mendErr := r.mendLayers(ctx, scrubber, damaged); mendErr != nil {
			return mendErr
		}
		if !errors.Is(err, errEnough) {
			return err
		}
	}
}

// mendLayers repairs what was found in the store, each layer once.
func (r *scrub) mendLayers(ctx context.Context, scrubber Scrubber, damaged []snapshot.Checked) error {
	if len(damaged) == 0 {
		return nil
	}
	r.by = r.set.byPart() // images have come and gone
	r.set.keeping.begin()
	defer r.set.endKeeping(ctx)
	tried := map[snapshot.Key]healed{}
	for _, c := range damaged {
		d := spec.Damage{Part: string(c.Part), Name: c.Name, What: c.Damage, Images: r.set.called(r.by.ofKeys(c.Keys))}
		switch {
		case c.Healed != "":
			d.Repaired, d.Repair = true, c.Healed
		case r.repair:
			r.heal(ctx, scrubber, &d, c.Keys, tried)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.found(ctx, d, c.Keys)
		r.read(string(c.Part), c.Place, c.Size)
	}
	return nil
}

type healed struct {
	from string
	err  error
}

// heal tries the layers that have what is damaged until one heals it.
func (r *scrub) heal(ctx context.Context, scrubber Scrubber, d *spec.Damage, keys []snapshot.Key, tried map[snapshot.Key]healed) {
	d.Repair = "no image has it"
	var why []error
	for _, key := range keys {
		l, ok := r.by.layers[key]
		if !ok {
			continue
		}
		got, known := tried[key]
		if !known {
			got.from, got.err = r.set.healLayer(ctx, scrubber, l, r.logins)
			tried[key] = got
		}
		if got.err == nil {
			d.Repaired, d.Repair = true, got.from
			return
		}
		why = append(why, got.err)
	}
	if len(why) > 0 {
		d.Repair = "pull " + r.set.origin(r.by.layers[firstOf(keys, r.by)]) + " again: " + sentence(why)
	}
}

func firstOf(keys []snapshot.Key, by byPart) snapshot.Key {
	at := slices.IndexFunc(keys, func(k snapshot.Key) bool { _, ok := by.layers[k]; return ok })
	return keys[at]
}

// healLayer gives the store the tar of a layer once more, and says where it
// came from.
func (s *Set) healLayer(ctx context.Context, scrubber Scrubber, l placed, logins spec.Logins) (from string, err error) {
	from = "its blob"
	err = s.healFrom(ctx, scrubber, l, s.fromBlobs([]layer{l.layer}))
	if err == nil || ctx.Err() != nil {
		return from, err
	}
	if !s.Blobs.Has(l.Digest) {
		err = nil // that it is not kept is no news
	}
	places := s.whereFrom(l.Digest)
	if len(places) == 0 {
		return "", errors.Join(err, errs.New(errs.NotFound, "its blob is not here, and no registry is known to have it"))
	}
	parts := s.bits(logins)
	fetchErr := s.healFrom(ctx, scrubber, l, func(ctx context.Context, _ int) (tarStream, error) { return s.fetchTar(ctx, parts, l) })
	if fetchErr == nil {
		return repositories(places[:1]), nil
	}
	return "", errors.Join(err, fetchErr)
}

func (s *Set) healFrom(ctx context.Context, scrubber Scrubber, l placed, open opener) error {
	st, err := open(ctx, 0)
	if err != nil {
		return err
	}
	tar := &hashed{r: st, hash: sha256.New(), report: func(spec.Progress) {}}
	err = scrubber.Heal(ctx, l.key, tar)
	if err == nil {
		err = st.Finish()
	}
	if err = errors.Join(err, st.Close()); err != nil {
		return fmt.Errorf("heal layer %s: %w", l.DiffID, err)
	}
	return tar.check(l.DiffID)
}

// mend heals a layer that is known to be damaged from a stream of it.
func (u *unpacking) mend(ctx context.Context, n int) error {
	scrubber, ok := u.set.Snapshots.(Scrubber)
	if !ok || !u.set.scrubs.isBroken(ofLayer(u.keys[n])) {
		return u.keepBlob(ctx, n)
	}
	if err := u.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer u.slots.Release(1)
	u.report(spec.Progress{Phase: spec.Unpacking, Item: u.layers[n].Digest.String(), Status: "repairing"})
	err := u.set.healFrom(ctx, scrubber, placed{layer: u.layers[n], key: u.keys[n]}, func(ctx context.Context, _ int) (tarStream, error) { return u.open(ctx, n) })
	if err != nil {
		return err
	}
	u.set.scrubs.mended(u.set.DB, ofLayer(u.keys[n]))
	return nil
}
