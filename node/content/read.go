package content

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// Open opens a blob for reading; it stays readable whatever becomes of it. One
// of the node's own images that is not kept is brought back first. NotFound:
// the namespace does not have it.
func (s *Set) Open(ctx context.Context, namespace string, d digest.Digest) (*os.File, error) {
	if _, err := s.Info(ctx, namespace, d); err != nil {
		return nil, err
	}
	f, err := s.Blobs.Reader(ctx, d)
	if err == nil || !errors.Is(err, errs.NotFound) {
		return f, err
	}
	if !s.isNative(ctx, namespace, d) {
		return nil, missing(d)
	}
	if f, err = s.Natives.Bring(ctx, d); err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	return f, nil
}
