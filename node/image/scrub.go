package image

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/node/snapshot"
	"berth/spec"
)

// Scrub reads blobs, manifests and layers, holds them against their digests,
// and tells what is damaged and which images that touches. Unless req says
// otherwise it repairs: from what is here, else from a registry. What cannot
// be had stays known as damaged, so that pulling such an image heals it.
// Conflict: a scrub is running already.
func (s *Set) Scrub(ctx context.Context, req spec.ScrubRequest, tell func(spec.ScrubProgress)) (spec.ScrubResult, error) {
	if !s.scrubs.begin() {
		return spec.ScrubResult{}, errs.New(errs.Conflict, "a scrub is running already")
	}
	defer s.scrubs.end()
	if tell == nil {
		tell = func(spec.ScrubProgress) {}
	}
	run := &scrub{set: s, repair: !req.NoRepair, logins: req.Logins, tell: tell, pace: unpaced}
	if err := run.all(ctx, scrubState{Started: time.Now().UTC()}); err != nil {
		return run.result(), fmt.Errorf("scrub: %w", err)
	}
	return run.result(), nil
}

func unpaced(ctx context.Context, _ int64) error { return ctx.Err() }

// scrub is one pass over all there is. Its stages are the blobs, which repairs
// draw on, what the store of snapshots keeps, and what is missing.
type scrub struct {
	set    *Set
	repair bool
	logins spec.Logins
	tell   func(spec.ScrubProgress)
	pace   func(ctx context.Context, bytes int64) error
	// save, if set, keeps the state for the next start.
	save func(scrubState)

	state scrubState
	total int64
	part  string
	told  time.Time
	saved time.Time
	by    byPart
}

// scrubState is how far a pass is.
type scrubState struct {
	Started time.Time `json:"started"`
	Stage   int       `json:"stage"`
	Place   string    `json:"place"` // within the stage

	Checked  int64  `json:"checked"`
	Bytes    int64  `json:"bytes"`
	Damaged  int    `json:"damaged"`
	Repaired int    `json:"repaired"`
	Note     string `json:"note,omitempty"`
}

// savedEvery is how often the state of a pass is kept.
const savedEvery = 10 * time.Second

// all goes through the stages that are left.
func (r *scrub) all(ctx context.Context, from scrubState) error {
	r.state = from
	r.total = r.set.toRead(ctx)
	r.by = r.set.byPart()
	stages := []func(context.Context) error{r.blobs, r.store, r.missing}
	for ; r.state.Stage < len(stages); r.state.Stage, r.state.Place = r.state.Stage+1, "" {
		if err := stages[r.state.Stage](ctx); err != nil {
			return err
		}
	}
	result := r.result()
	r.set.Scrubbed(result)
	return r.set.scrubs.finished(ctx, r.set.DB, result)
}

func (r *scrub) result() spec.ScrubResult {
	return spec.ScrubResult{
		Started: r.state.Started, Ended: time.Now().UTC(), Checked: r.state.Checked, Bytes: r.state.Bytes,
		Damaged: r.state.Damaged, Repaired: r.state.Repaired, Note: r.state.Note,
	}
}

// toRead is roughly what a scrub reads.
func (s *Set) toRead(ctx context.Context) (total int64) {
	usage, err := s.DiskUsage(ctx)
	if err != nil {
		return 0 // it is only for show
	}
	total = usage.Blobs.Size
	if _, ok := s.Snapshots.(Scrubber); ok && !usage.Estimated {
		total += usage.Store.Objects + usage.Store.Metadata
	}
	return total
}

// read notes that something has been read, up to place.
func (r *scrub) read(part, place string, bytes int64) {
	r.state.Checked++
	r.state.Bytes += bytes
	r.state.Place, r.part = place, part
	r.set.scrubs.count(bytes)
	now := time.Now()
	if now.Sub(r.told) >= every {
		r.told = now
		r.tell(r.progress())
	}
	if r.save != nil && now.Sub(r.saved) >= savedEvery {
		r.saved = now
		r.save(r.state)
	}
}

func (r *scrub) progress() spec.ScrubProgress {
	return spec.ScrubProgress{Part: r.part, Checked: r.state.Checked, Bytes: r.state.Bytes, Total: max(r.total, r.state.Bytes)}
}

// found tells of damage, once it is known what became of it. keys are the
// layers whose pull would heal it.
func (r *scrub) found(ctx context.Context, d spec.Damage, keys []snapshot.Key) {
	r.state.Damaged++
	if d.Images == nil {
		d.Images = []string{}
	}
	if d.Repaired {
		r.state.Repaired++
		r.set.scrubs.mended(r.set.DB, sameAs(d))
	} else {
		r.set.scrubs.broken(r.set.DB, d, keys)
	}
	p := r.progress()
	p.Damage = &d
	r.tell(p)
	r.set.Damaged(d)
	r.set.Log.WarnContext(ctx, "damage was found", "part", d.Part, "name", d.Name, "what", d.What, "images", strings.Join(d.Images, " "), "repaired", d.Repaired, "repair", d.Repair)
}

// byPart finds what a part belongs to.
type byPart struct {
	images map[digest.Digest][]*record // by blob
	layers map[snapshot.Key]placed     // by chain
	chains map[snapshot.Key][]*record  // by any layer of them
}

func (s *Set) byPart() byPart {
	b := byPart{map[digest.Digest][]*record{}, map[snapshot.Key]placed{}, map[snapshot.Key][]*record{}}
	for _, rec := range s.all() {
		for _, part := range rec.parts() {
			if !slices.Contains(b.images[part.Digest], rec) {
				b.images[part.Digest] = append(b.images[part.Digest], rec)
			}
		}
		for n, key := range chain(rec.Layers) {
			b.layers[key] = placed{layer: rec.Layers[n], key: key, image: rec}
			b.chains[key] = append(b.chains[key], rec)
		}
	}
	return b
}

// called lists how people call images, each once.
func (s *Set) called(all []*record) []string {
	names := []string{}
	for _, rec := range all {
		names = append(names, s.call(rec))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// ofKeys lists the images that stand on any of the layers.
func (b byPart) ofKeys(keys []snapshot.Key) []*record {
	var all []*record
	for _, key := range keys {
		all = append(all, b.chains[key]...)
	}
	return all
}

// missing looks for layers and documents that are not there at all.
func (r *scrub) missing(ctx context.Context) error {
	for _, rec := range r.set.all() {
		for _, desc := range []digest.Digest{rec.Manifest.Digest, rec.Config.Digest} {
			if r.set.Blobs.Has(desc) || r.known(desc) {
				continue
			}
			d := spec.Damage{Part: partBlob, Name: desc.String(), What: "is missing", Images: r.set.called(r.by.images[desc])}
			if err := r.mendBlob(ctx, &d, desc); err != nil {
				return err
			}
			r.found(ctx, d, nil)
		}
		if err := r.missingLayers(ctx, rec); err != nil {
			return err
		}
	}
	return nil
}

// known says whether this pass has found damage in a blob already: it may be
// gone because of that.
func (r *scrub) known(which digest.Digest) bool {
	return r.set.scrubs.isBroken(func(b brokenPart) bool {
		return b.Part == partBlob && b.Name == which.String() && !b.Found.Before(r.state.Started)
	})
}

func (r *scrub) missingLayers(ctx context.Context, rec *record) error {
	for _, key := range chain(rec.Layers) {
		if r.set.unpacked(ctx, key) {
			continue
		}
		d := spec.Damage{Part: string(snapshot.PartLayer), Name: string(key), What: "is missing", Images: r.set.called(r.by.chains[key])}
		if r.repair {
			_, err := r.set.restore(ctx, rec, r.set.fromAnywhere(rec.Layers, r.logins))
			d.Repaired, d.Repair = err == nil, "unpacked again"
			if err != nil {
				d.Repair = err.Error()
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.found(ctx, d, nil)
	}
	return nil
}
