package lcfs

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

// images are those that the record names.
func (r *record) images() []string {
	return slices.DeleteFunc([]string{r.Delta, r.Merged}, func(name string) bool { return name == "" })
}

// toSeal is an image that is durable now; layer says that it has objects of
// its own.
type toSeal struct {
	image string
	layer bool
}

// sealLater has the images of a record sealed in the background.
func (s *Store) sealLater(rec *record) {
	if rec.Merged != "" {
		s.sealer.add(toSeal{rec.Merged, false})
	}
	if rec.Delta != "" {
		s.sealer.add(toSeal{rec.Delta, true})
	}
}

// sealLoop has the kernel check what layers are made of whenever it is read,
// once they are durable; unless the file system cannot.
func (s *Store) sealLoop(ctx context.Context) {
	done := map[toSeal]bool{}
	for {
		images := s.sealer.take(ctx)
		if images == nil {
			return
		}
		for _, image := range images {
			if done[image] {
				continue
			}
			done[image] = true
			if err := s.seal(ctx, image, object.Gentle); err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrNotExist) {
				s.log.WarnContext(ctx, "an image is not sealed until the next scrub", "image", image.image, "error", err)
			}
		}
	}
}

// seal seals an image and its objects.
func (s *Store) seal(ctx context.Context, image toSeal, pace object.Pace) error {
	if err := s.sealImage(image.image); err != nil || !image.layer {
		return err
	}
	start := time.Now()
	var failed error
	err := s.eachObject(ctx, image.image, func(d tree.Digest) bool {
		sealed, err := s.sealObject(ctx, d)
		if err == nil && sealed {
			start, err = pace.Rest(ctx, start)
		}
		failed = err
		return err == nil && sealed
	})
	return errors.Join(err, failed)
}

// sealObject says whether others can be sealed: one that is not here, or that
// somebody is just writing, is left to the next scrub.
func (s *Store) sealObject(ctx context.Context, d tree.Digest) (bool, error) {
	sealed, err := s.objects.Seal(ctx, d)
	if errors.Is(err, errs.NotFound) || errs.IsAny(err, unix.ETXTBSY) {
		return true, nil
	}
	return sealed, err
}

// sealImage seals the file of an image, or where it rests that one.
func (s *Store) sealImage(name string) error {
	for _, path := range []string{s.images.path(name), s.images.restPath(name)} {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = object.SealFile(f)
		if err := errors.Join(err, f.Close()); err != nil && !errs.IsAny(err, unix.ETXTBSY) {
			return err
		}
	}
	return nil
}
