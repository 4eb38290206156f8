package lcfs

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

// images are those that the record names.
func (r *record) images() []string {
	return slices.DeleteFunc([]string{r.Delta, r.Merged}, func(name string) bool { return name == "" })
}

// sealLoop has the kernel check what layers are made of whenever it is read,
// once they are durable; unless the file system cannot.
func (s *Store) sealLoop(ctx context.Context) {
	for {
		names := s.sealer.take(ctx)
		if names == nil {
			return
		}
		for _, name := range names {
			if err := s.seal(ctx, name); err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrNotExist) {
				s.log.WarnContext(ctx, "an image is not sealed until the next scrub", "image", name, "error", err)
			}
		}
	}
}

// seal seals an image and its objects, gently.
func (s *Store) seal(ctx context.Context, name string) error {
	if err := s.sealImage(name); err != nil {
		return err
	}
	start := time.Now()
	var failed error
	err := s.eachObject(ctx, name, func(d tree.Digest) bool {
		var sealed bool
		if sealed, failed = s.objects.Seal(ctx, d); errors.Is(failed, errs.NotFound) {
			failed, sealed = nil, true
		}
		if failed == nil && sealed {
			start, failed = object.Gentle.Rest(ctx, start)
		}
		return failed == nil && sealed
	})
	return errors.Join(err, failed)
}

func (s *Store) sealImage(name string) error {
	f, err := os.Open(s.images.path(name))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	defer f.Close()
	_, err = object.SealFile(f)
	return err
}
