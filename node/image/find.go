package image

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/reference"
	"berth/spec"
)

// Get returns the image called ref: a name, the digest of the configuration,
// the manifest or the index, or the first digits of the ID. A name goes
// before an ID. NotFound: there is none; Conflict: ref is the beginning of
// several IDs; Invalid: ref can be neither.
func (s *Set) Get(ctx context.Context, ref string) (spec.Image, error) {
	rec, err := s.find(ref)
	if err != nil {
		return spec.Image{}, err
	}
	return s.show(rec), ctx.Err()
}

func (s *Set) find(ref string) (*record, error) {
	rec, _, err := s.resolve(ref)
	return rec, err
}

// resolve also returns the name that ref was, none where it was an ID. The
// node's own names go before those of other namespaces.
func (s *Set) resolve(ref string) (*record, named, error) {
	return s.resolveIn(ref, s.homes()...)
}

// resolveIn is resolve for the names of some of homes. IDs are the same in all.
func (s *Set) resolveIn(ref string, homes ...string) (*record, named, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if rec := s.images[ref]; rec != nil {
		return rec, named{}, nil
	}
	if d, err := digest.Parse(ref); err == nil {
		if rec := s.byDigest(d); rec != nil {
			return rec, named{}, nil
		}
		return nil, named{}, missing(ref)
	}
	for _, space := range homes {
		if rec := s.images[s.home(space)[ref]]; rec != nil {
			return rec, named{space, ref}, nil // also what a client called it in a way of its own
		}
	}
	name, nameErr := reference.Parse(ref)
	if nameErr == nil {
		for _, space := range homes {
			if id, ok := s.home(space)[name.String()]; ok && s.images[id] != nil {
				return s.images[id], named{space, name.String()}, nil
			}
		}
		if name.Digest() != "" {
			for _, space := range homes {
				if rec := s.byRepoDigest(name.Digest(), name.Repository(), space); rec != nil {
					return rec, named{}, nil
				}
			}
			return nil, named{}, missing(ref)
		}
	}
	rec, err := s.byPrefix(ref)
	if err != nil || rec != nil {
		return rec, named{}, err
	}
	if nameErr != nil && !isWholeID(ref) {
		return nil, named{}, nameErr
	}
	return nil, named{}, missing(ref)
}

// isWholeID says whether ref is as long as an ID without its algorithm, which
// is never a name.
func isWholeID(ref string) bool {
	return len(ref) == digest.SHA256.Size()*2 && strings.Trim(ref, "0123456789abcdef") == ""
}

func missing(ref string) error { return errs.New(errs.NotFound, "no image %s", ref) }

// byDigest finds an image by manifest or index. mu is held.
func (s *Set) byDigest(d digest.Digest) *record {
	for _, rec := range s.images {
		if rec.Target.Digest == d || rec.Manifest.Digest == d {
			return rec
		}
	}
	return nil
}

// byRepoDigest finds an image by manifest or index that has a name in a
// repository, in one of homes. mu is held.
func (s *Set) byRepoDigest(d digest.Digest, repository, space string) *record {
	for name, id := range s.home(space) {
		rec := s.images[id]
		if rec == nil || rec.Target.Digest != d && rec.Manifest.Digest != d {
			continue
		}
		if rest, ok := strings.CutPrefix(name, repository); ok && rest != "" && strings.ContainsAny(rest[:1], ":@") {
			return rec
		}
	}
	return nil
}

// byPrefix finds the only image whose ID begins with ref. mu is held.
func (s *Set) byPrefix(ref string) (*record, error) {
	digits := strings.TrimPrefix(ref, "sha256:")
	if digits == "" || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, nil
	}
	var found *record
	for id, rec := range s.images {
		if !strings.HasPrefix(id, "sha256:"+digits) {
			continue
		}
		if found != nil {
			return nil, errs.New(errs.Conflict, "%s is the beginning of more than one image ID: write more of it", ref)
		}
		found = rec
	}
	return found, nil
}

// List returns the images that fit filter, newest first. Keys: reference (a
// pattern), label (name or name=value; all must fit), dangling, before, since,
// until, id.
func (s *Set) List(ctx context.Context, filter spec.Filter) ([]spec.Image, error) {
	fits, err := s.compile(filter)
	if err != nil {
		return nil, err
	}
	images := []spec.Image{}
	for _, rec := range s.all() {
		if image := s.show(rec); fits(image) {
			images = append(images, image)
		}
	}
	slices.SortFunc(images, func(a, b spec.Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return images, ctx.Err()
}

// compile makes one test of a filter.
func (s *Set) compile(filter spec.Filter) (func(spec.Image) bool, error) {
	var tests []func(spec.Image) bool
	for key, values := range filter {
		if key == "label" || key == "label!" {
			for _, value := range values {
				want := key == "label"
				tests = append(tests, func(i spec.Image) bool { return hasLabel(i, value) == want })
			}
			continue
		}
		var any []func(spec.Image) bool
		for _, value := range values {
			test, err := s.test(key, value)
			if err != nil {
				return nil, err
			}
			any = append(any, test)
		}
		tests = append(tests, func(i spec.Image) bool {
			return len(any) == 0 || slices.ContainsFunc(any, func(t func(spec.Image) bool) bool { return t(i) })
		})
	}
	return func(i spec.Image) bool {
		return !slices.ContainsFunc(tests, func(t func(spec.Image) bool) bool { return !t(i) })
	}, nil
}

// test is one value of a filter.
func (s *Set) test(key, value string) (func(spec.Image) bool, error) {
	switch key {
	case "reference":
		if _, err := path.Match(value, ""); err != nil {
			return nil, errs.New(errs.Invalid, "filter reference=%s: %w", value, err)
		}
		return func(i spec.Image) bool {
			return slices.ContainsFunc(i.Names, func(name string) bool { return matchName(value, name) })
		}, nil
	case "dangling":
		want, err := strconv.ParseBool(value)
		if err != nil {
			return nil, errs.New(errs.Invalid, "filter dangling=%s: want true or false", value)
		}
		return func(i spec.Image) bool { return (len(i.Names) == 0) == want }, nil
	case "before", "since":
		other, err := s.find(value)
		if err != nil {
			return nil, err
		}
		sign := map[string]int{"before": -1, "since": 1}[key]
		at := other.Image.Created
		return func(i spec.Image) bool { return i.Created.Compare(at) == sign }, nil
	case "until":
		at, err := parseUntil(value, time.Now())
		if err != nil {
			return nil, err
		}
		return func(i spec.Image) bool { return i.Created.Before(at) }, nil
	case "id":
		digits := strings.TrimPrefix(value, "sha256:")
		return func(i spec.Image) bool { return strings.HasPrefix(i.ID, "sha256:"+digits) }, nil
	}
	return nil, errs.New(errs.Invalid, "images know no filter %q", key)
}

// matchName fits a pattern on a name as people write it: with or without the
// tag, the default domain left out.
func matchName(pattern, name string) bool {
	names := []string{name}
	if n, err := reference.Parse(name); err == nil {
		names = append(names, n.Familiar(), n.FamiliarRepository(), n.Repository())
	}
	return slices.ContainsFunc(names, func(name string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	})
}

func hasLabel(i spec.Image, label string) bool {
	name, want, exact := strings.Cut(label, "=")
	value, ok := i.Labels[name]
	return ok && (!exact || value == want)
}

// parseUntil reads a moment: RFC 3339, a day, seconds since 1970, or a
// duration before now.
func parseUntil(value string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(value); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateOnly} {
		if at, err := time.Parse(layout, value); err == nil {
			return at, nil
		}
	}
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, errs.New(errs.Invalid, "filter until=%s: want a time or a duration", value)
}

// isMissing tells "no such image" from other failures.
func isMissing(err error) bool { return errors.Is(err, errs.NotFound) }
