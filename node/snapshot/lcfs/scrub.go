package lcfs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// pacer is asked before bytes are read, and returns when they may be.
type pacer func(ctx context.Context, bytes int64) error

// scrubbing is one call of Scrub. What it goes through, in this order, so that
// what is healed first is what healing the rest needs:
//
//	1/<depth>/<name>    images of what layers change, those at the bottom first
//	2/<name>            merged images
//	3/<id>              recipes
//	4/<digest>          objects
type scrubbing struct {
	*Store
	after string
	pace  pacer
	tell  func(snapshot.Checked) error
}

// Scrub reads images, recipes and objects and tells fn of each whether it is
// what it is called. It reads past the page cache, holds no lock meanwhile,
// and has what is whole sealed where the file system can. What can be made
// again of what is here is made again.
func (s *Store) Scrub(ctx context.Context, after string, pace func(ctx context.Context, bytes int64) error, fn func(snapshot.Checked) error) error {
	sc := &scrubbing{Store: s, after: after, pace: pace, tell: fn}
	for _, stage := range []func(context.Context) error{sc.deltas, sc.merged, sc.recipes, sc.bodies} {
		if err := stage(ctx); err != nil {
			return err
		}
	}
	return nil
}

// layersBy lists the layers of which fn names something, by that name.
func (s *Store) layersBy(fn func(*record) string) map[string][]*record {
	users := map[string][]*record{}
	for _, rec := range s.all() {
		if name := fn(rec); name != "" && rec.Kind == snapshot.KindCommitted {
			users[name] = append(users[name], rec)
		}
	}
	return users
}

func deltaOf(rec *record) string  { return rec.Delta }
func mergedOf(rec *record) string { return rec.Merged }

func recipeOf(rec *record) string {
	if !rec.Recipe {
		return ""
	}
	return rec.ID
}

// each calls check for the names of users at their places, in the order of
// places, from behind where the scrub begins.
func (sc *scrubbing) each(ctx context.Context, users map[string][]*record, place func(name string, by []*record) string, check func(name string, by []*record) snapshot.Checked, read func(context.Context, string) (int64, string, error)) error {
	type item struct{ place, name string }
	var items []item
	for name, by := range users {
		if p := place(name, by); p > sc.after {
			items = append(items, item{p, name})
		}
	}
	slices.SortFunc(items, func(a, b item) int { return strings.Compare(a.place, b.place) })
	for _, it := range items {
		size, damage, err := read(ctx, it.name)
		if err != nil {
			return err
		}
		var c snapshot.Checked
		if damage != "" {
			c = check(it.name, users[it.name])
			if len(c.Keys) == 0 {
				continue // removed meanwhile
			}
			c.Damage = damage
		}
		c.Size, c.Place = size, it.place
		if c.Part == "" {
			c.Part, c.Name = snapshot.PartMetadata, it.name
		}
		if err := sc.tell(c); err != nil {
			return err
		}
	}
	return nil
}

// deltas checks the images of layers, and that the lists of their objects say
// the same.
func (sc *scrubbing) deltas(ctx context.Context) error {
	place := func(_ string, by []*record) string {
		depth := by[0].Depth
		for _, rec := range by {
			depth = min(depth, rec.Depth)
		}
		return fmt.Sprintf("1/%04d/", depth)
	}
	return sc.each(ctx, sc.layersBy(deltaOf), func(name string, by []*record) string { return place(name, by) + name },
		func(name string, by []*record) snapshot.Checked {
			c := snapshot.Checked{Keys: sc.still(by, func(rec *record) bool { return rec.Delta == name })}
			if sc.settleAgain(name, by) {
				c.Healed = "made again from the layer's folder"
			}
			return c
		}, sc.image)
}

// merged checks the images of whole chains. A damaged one is forgotten, and
// made again of those of the layers.
func (sc *scrubbing) merged(ctx context.Context) error {
	users := sc.layersBy(mergedOf)
	for name := range sc.layersBy(deltaOf) {
		delete(users, name) // it is both
	}
	return sc.each(ctx, users, func(name string, _ []*record) string { return "2/" + name },
		func(name string, by []*record) snapshot.Checked {
			c := snapshot.Checked{Keys: sc.still(by, func(rec *record) bool { return rec.Merged == name })}
			sc.forgetMerged(name, by)
			c.Healed = "made again from its layers"
			return c
		}, func(ctx context.Context, name string) (int64, string, error) {
			size, damage, err := sc.checkImage(ctx, name, sc.pace)
			if err != nil || damage != "" {
				return size, damage, err
			}
			return size, "", sc.sealImage(name)
		})
}

// recipes checks what tars of layers are made of.
func (sc *scrubbing) recipes(ctx context.Context) error {
	users := sc.layersBy(recipeOf)
	return sc.each(ctx, users, func(id string, _ []*record) string { return "3/" + id },
		func(_ string, by []*record) snapshot.Checked {
			return snapshot.Checked{Part: snapshot.PartLayer, Name: string(by[0].Key), Keys: sc.still(by, func(rec *record) bool { return rec.Recipe })}
		},
		func(ctx context.Context, id string) (int64, string, error) {
			return sc.checkRecipe(ctx, users[id][0], sc.pace)
		})
}

// still lists the keys of those records that fit, as they are now.
func (s *Store) still(recs []*record, fits func(*record) bool) []snapshot.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var keys []snapshot.Key
	for _, rec := range recs {
		if now := s.byKey[rec.Key]; now != nil && now.ID == rec.ID && !now.claimed && fits(now) {
			keys = append(keys, rec.Key)
		}
	}
	slices.Sort(keys)
	return keys
}

// image checks an image and the list of its objects, and mends the list.
func (sc *scrubbing) image(ctx context.Context, name string) (int64, string, error) {
	size, damage, err := sc.checkImage(ctx, name, sc.pace)
	if err != nil || damage != "" {
		return size, damage, err
	}
	if err := sc.mendList(ctx, name); err != nil {
		return size, "", err
	}
	return size, "", sc.sealImage(name)
}

// checkImage says what is wrong with an image; "" where it is whole.
func (s *Store) checkImage(ctx context.Context, name string, pace pacer) (size int64, damage string, err error) {
	sum, size, err := digestOf(ctx, s.images.path(name), pace)
	if errors.Is(err, os.ErrNotExist) {
		sum, size, err = s.images.digest(ctx, name, pace)
	}
	if err == nil && hex.EncodeToString(sum[:]) == name {
		return size, "", nil
	}
	damage, err = damageOf(err, "its bytes are not those of its name")
	return size, damage, err
}

// checkRecipe is checkImage for the recipe of a layer.
func (s *Store) checkRecipe(ctx context.Context, rec *record, pace pacer) (size int64, damage string, err error) {
	sum, size, err := digestOf(ctx, s.recipe(rec.ID), pace)
	if err == nil && (rec.RecipeSum == "" || hex.EncodeToString(sum[:]) == rec.RecipeSum) {
		return s.checkHidden(ctx, rec, size, pace)
	}
	damage, err = damageOf(err, "what its tar is made from has other bytes")
	return size, damage, err
}

// checkHidden goes on with the bodies that only the recipe names.
func (s *Store) checkHidden(ctx context.Context, rec *record, size int64, pace pacer) (read int64, damage string, err error) {
	for _, d := range rec.hidden() {
		n, damage, err := s.checkObject(ctx, d, pace)
		if size += n; err != nil || damage != "" {
			return size, damage, err
		}
	}
	return size, "", nil
}

// damageOf tells damage from a failure of the check itself.
func damageOf(err error, otherwise string) (string, error) {
	switch {
	case err == nil:
		return otherwise, nil
	case errors.Is(err, os.ErrNotExist):
		return missing, nil
	case errs.IsAny(err, unix.EIO, unix.EBADMSG, unix.EUCLEAN):
		return "cannot be read: " + err.Error(), nil
	}
	return "", err
}

// bodies checks the objects that layers name, and hands to the sweep those
// that none does.
func (sc *scrubbing) bodies(ctx context.Context) error {
	users := sc.layersBy(deltaOf)
	images := make([]string, 0, len(users))
	for name := range users {
		images = append(images, name)
	}
	slices.Sort(images)
	from, _ := strings.CutPrefix(sc.after, "4/")
	var first [1]byte
	if len(from) >= 2 {
		_, _ = hex.Decode(first[:], []byte(from[:2]))
	}
	return sc.eachPart(ctx, images, first[0], func(p part) error {
		strays, err := sc.strays(p)
		if err != nil {
			return err
		}
		if len(strays) > 0 {
			sc.orphan(strays)
		}
		return p.runs(func(d tree.Digest, by []naming) error {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			where := "4/" + hex.EncodeToString(d[:])
			if where <= sc.after {
				return nil
			}
			var recs []*record
			for _, n := range by {
				recs = append(recs, users[images[n.image]]...)
			}
			return sc.body(ctx, d, recs, where)
		})
	})
}

// strays lists the objects on disk that are not in p.
func (s *Store) strays(p part) (strays []tree.Digest, err error) {
	named := p.named
	for first := p.first; first < p.end; first++ {
		here, err := s.objects.List(byte(first))
		if err != nil {
			return nil, err
		}
		for _, d := range here {
			var by []naming
			if by, named = cut(named, d); len(by) == 0 {
				strays = append(strays, d)
			}
		}
	}
	return strays, nil
}

// body checks one object, which the layers recs name.
func (sc *scrubbing) body(ctx context.Context, d tree.Digest, recs []*record, where string) error {
	size, damage, err := sc.checkObject(ctx, d, sc.pace)
	if err != nil {
		return err
	}
	c := snapshot.Checked{Part: snapshot.PartObject, Name: "sha256:" + hex.EncodeToString(d[:]), Size: size, Place: where, Damage: damage}
	if damage == "" {
		if _, err = sc.sealObject(ctx, d); err != nil {
			return err
		}
		return sc.tell(c)
	}
	c.Keys = sc.still(recs, func(rec *record) bool {
		return rec.Delta != "" && (damage != missing || rec.Labels[snapshot.Missing] == "")
	})
	if len(c.Keys) == 0 {
		return nil // removed meanwhile, or known to be missing
	}
	// A layer may have been removed, swept and stored anew.
	if c.Size, c.Damage, err = sc.checkObject(ctx, d, unpaced); err != nil {
		return err
	}
	if c.Damage == "" {
		c.Keys = nil
	}
	return sc.tell(c)
}

const missing = "is missing"

func unpaced(ctx context.Context, _ int64) error { return ctx.Err() }

// checkObject says what is wrong with an object; "" where it is whole. One
// that somebody is just writing is waited for.
func (s *Store) checkObject(ctx context.Context, d tree.Digest, pace pacer) (size int64, damage string, err error) {
	path := s.objects.Dir() + "/" + object.Name(d)
	sum, size, err := digestOf(ctx, path, pace)
	if err == nil && sum == d {
		return size, "", nil
	}
	if _, err := damageOf(err, ""); err != nil {
		return size, "", err
	}
	s.objects.Wait(d)
	sum, size, err = digestOf(ctx, path, unpaced)
	if err == nil && sum == d {
		return size, "", nil
	}
	if errors.Is(err, os.ErrNotExist) {
		_ = s.objects.Verify(ctx, d) // has the store know it, so that it can be stored again
	}
	damage, err = damageOf(err, "its bytes are not those of its digest")
	return size, damage, err
}
