package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"sync/atomic"

	"berth/image/object"
	"berth/image/tree"
)

// Heal stores anew the bodies of a layer that want asks for, as they are
// damaged or not here, and says how many those were. The tar should be the
// layer's own; nothing of it but the wanted bodies is kept. want is called from
// several goroutines.
func Heal(ctx context.Context, layer io.Reader, want func(tree.Digest) bool, objects *object.Store) (int, error) {
	b, err := objects.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer b.End()
	h := &healer{batch: batch{b}, store: objects, want: want}
	_, err = read(ctx, Config{}, h, layer)
	return int(h.healed.Load()), err
}

// healer is a sink that keeps what is wanted.
type healer struct {
	batch
	store  *object.Store
	want   func(tree.Digest) bool
	healed atomic.Int64
}

func (h *healer) put(body []byte) (tree.Digest, error) {
	d := tree.Digest(sha256.Sum256(body))
	if !h.want(d) {
		return d, nil
	}
	if err := h.store.Replace(d, bytes.NewReader(body)); err != nil {
		return d, err
	}
	h.healed.Add(1)
	return d, nil
}

func (h *healer) create() (bodyWriter, error) {
	w, err := h.Create()
	if err != nil {
		return nil, err
	}
	return healing{w, h}, nil
}

type healing struct {
	*object.Writer
	healer *healer
}

// Commit implements bodyWriter; nobody asks for the digest.
func (w healing) Commit() (d tree.Digest, err error) {
	done, err := w.Replace(w.healer.want)
	if done {
		w.healer.healed.Add(1)
	}
	return d, err
}
