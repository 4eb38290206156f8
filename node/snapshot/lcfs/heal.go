package lcfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/erofs"
	"berth/image/layer"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// Heal makes anew what is missing or damaged of the layer key: its image, its
// recipe and its objects. What is mounted already may go on to show what was
// damaged.
//
// A layer that was committed rather than ingested is healed from the tar that
// Diff wrote of it; where its image was damaged, times are then whole seconds
// and sockets are lost.
func (s *Store) Heal(ctx context.Context, key snapshot.Key, tar io.Reader) error {
	err := s.heal(ctx, key, tar)
	if err != nil {
		return fmt.Errorf("heal layer %s: %w", key, errs.Full(err))
	}
	return nil
}

func (s *Store) heal(ctx context.Context, key snapshot.Key, tar io.Reader) error {
	rec, letGo, err := s.pin(key)
	if err != nil {
		return err
	}
	defer letGo()
	if rec.Kind != snapshot.KindCommitted {
		return errs.New(errs.Conflict, "it is %s, not committed", rec.Kind)
	}
	if !rec.isSettled() { // its folder is all there is
		_, err := io.Copy(io.Discard, tar)
		return err
	}
	h := &healing{Store: s, rec: rec, hash: sha256.New(), met: map[tree.Digest]bool{}}
	if err := h.diagnose(ctx); err != nil {
		return err
	}
	defer h.close()
	if err := h.read(ctx, io.TeeReader(tar, h.hash)); err != nil {
		return err
	}
	if err := h.finish(ctx); err != nil {
		return err
	}
	if err := s.objects.Sync(ctx); err != nil {
		return err
	}
	if rec, err = s.find(key); err != nil {
		return nil //nolint:nilerr // removed meanwhile
	}
	return s.seal(ctx, toSeal{rec.Delta, true}, object.Full)
}

// healing is one call of Heal.
type healing struct {
	*Store
	rec    *record
	image  bool // is damaged
	recipe bool // is damaged
	hash   hash.Hash

	named []tree.Digest // the objects of the layer, where its image is whole
	root  *tree.Node    // what the tar says, where image or recipe are damaged
	file  *os.File      // the new recipe
	sum   string        // of it

	mu     sync.Mutex
	met    map[tree.Digest]bool // bodies in the tar: whether they are objects that are whole
	failed error
}

// close deletes the new recipe, unless it has its name.
func (h *healing) close() {
	if h.file != nil {
		_ = h.file.Close()
		_ = os.Remove(h.file.Name())
	}
}

// diagnose finds what is damaged but for objects.
func (h *healing) diagnose(ctx context.Context) error {
	_, damage, err := h.checkImage(ctx, h.rec.Delta, unpaced)
	if err != nil {
		return err
	}
	if h.image = damage != ""; !h.image {
		if err := h.mendList(ctx, h.rec.Delta); err != nil {
			return err
		}
		err := h.eachObject(ctx, h.rec.Delta, func(d tree.Digest) bool { h.named = append(h.named, d); return true })
		if err != nil {
			return err
		}
	}
	if h.rec.Recipe {
		_, damage, err = h.checkRecipe(ctx, h.rec, unpaced)
		h.recipe = damage != ""
	}
	return err
}

// read has the tar read: for its bodies, and for its tree, if that is needed.
func (h *healing) read(ctx context.Context, tar io.Reader) (err error) {
	if h.image || h.recipe {
		var reading sync.WaitGroup
		var readErr error
		out, in := io.Pipe()
		reading.Go(func() {
			readErr = h.readTree(ctx, out)
			_ = out.CloseWithError(readErr)
		})
		tar = io.TeeReader(tar, in)
		defer func() {
			_ = in.CloseWithError(err) // nil is the end of the tar
			reading.Wait()
			err = errors.Join(readErr, err)
		}()
	}
	_, err = layer.Heal(ctx, tar, func(d tree.Digest) bool { return h.wants(ctx, d) }, h.objects)
	return errors.Join(err, h.failed)
}

func (h *healing) readTree(ctx context.Context, tar io.Reader) (err error) {
	if h.file, err = os.CreateTemp(filepath.Join(h.dir, "recipes"), temporaryPrefix); err != nil {
		return err
	}
	sum := sha256.New()
	h.root, err = layer.Read(ctx, layer.Config{InlineLimit: inlineLimit, MaxBytes: h.maxLayer, Recipe: io.MultiWriter(h.file, sum)}, tar)
	h.sum = hex.EncodeToString(sum.Sum(nil))
	return err
}

// wants says whether the body d of the tar is to be stored: an object of the
// layer that is not here, or damaged. Of a layer whose image is damaged, that
// is any body; too small ones are swept later.
func (h *healing) wants(ctx context.Context, d tree.Digest) bool {
	if !h.image {
		if _, named := slices.BinarySearchFunc(h.named, d, tree.Digest.Compare); !named && !slices.Contains(h.rec.Hidden, hexDigest(d)) {
			return false
		}
	}
	h.mu.Lock()
	_, met := h.met[d]
	h.met[d] = true
	h.mu.Unlock()
	if met {
		return false // it is, or was, looked at
	}
	_, damage, err := h.checkObject(ctx, d, unpaced)
	if err != nil {
		h.mu.Lock()
		h.failed = errors.Join(h.failed, err)
		h.mu.Unlock()
	}
	return damage != ""
}

// finish puts image and recipe in their places.
func (h *healing) finish(ctx context.Context) error {
	if err := h.trust(); err != nil {
		return err
	}
	if h.image {
		if err := h.placeTree(ctx); err != nil {
			return err
		}
	}
	if h.recipe {
		return h.placeRecipe()
	}
	return nil
}

// trust fails unless the tar was the layer's. Bodies speak for themselves; a
// tree must be vouched for by the layer's name, by the digest of its recipe or
// by the objects that are known to be its.
func (h *healing) trust() error {
	for _, d := range h.named {
		if !h.met[d] {
			return errs.New(errs.Invalid, "this is not its tar: body %x is not in it", d)
		}
	}
	if h.root == nil {
		return nil
	}
	diffID := "sha256:" + hex.EncodeToString(h.hash.Sum(nil))
	if snapshot.Chain(h.rec.Parent, diffID) == h.rec.Key || h.rec.RecipeSum != "" && h.rec.RecipeSum == h.sum {
		return nil
	}
	known := h.named
	if h.image {
		list, err := os.ReadFile(h.objectsPath(h.rec.Delta))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for d := range slices.Chunk(list[:len(list)/sha256.Size*sha256.Size], sha256.Size) {
			known = append(known, tree.Digest(d))
		}
	}
	if h.rec.Recipe || !slices.Equal(known, tree.Objects(h.root)) {
		return errs.New(errs.Invalid, "this is not its tar")
	}
	return nil
}

// placeTree writes the layer's image again. It has another name than before
// if the tar says less than the image did.
func (h *healing) placeTree(ctx context.Context) error {
	s, rec := h.Store, h.rec
	below, err := s.chainTree(ctx, rec.Parent)
	if err != nil {
		return fmt.Errorf("layers below: %w", err)
	}
	s.mu.Lock()
	delete(s.sound, rec.Delta)
	s.mu.Unlock()
	image, letGo, err := s.writeLayer(fit(h.root, below.root))
	if err != nil {
		return err
	}
	defer letGo()
	if err := unix.Syncfs(s.metafd); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	if image != rec.Delta {
		s.log.WarnContext(ctx, "the tree of a layer is another than it was", "key", rec.Key)
		s.changeDelta(rec, image)
	}
	// Small bodies are in the tree.
	var small []tree.Digest
	objects := tree.Objects(h.root)
	for d := range h.met {
		if _, named := slices.BinarySearchFunc(objects, d, tree.Digest.Compare); !named {
			small = append(small, d)
		}
	}
	if len(small) > 0 {
		s.orphan(small)
	}
	return nil
}

// changeDelta gives a layer another image. What was merged of the one before
// may name objects that it does not, and is made anew.
func (s *Store) changeDelta(layer *record, image string) {
	defer s.trees.clear()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.changeLocked(layer, func(r *record) { r.Delta = image }) {
		return
	}
	for _, rec := range s.byKey {
		if rec.Merged == "" || rec.claimed {
			continue
		}
		for below := rec; below != nil; below = s.byKey[below.Parent] {
			if below.ID == layer.ID {
				s.changeLocked(rec, func(r *record) { r.Merged = "" })
				break
			}
		}
	}
	s.nudge(s.tidy)
}

func (h *healing) placeRecipe() error {
	err := h.file.Sync()
	if err == nil {
		err = os.Rename(h.file.Name(), h.Store.recipe(h.rec.ID))
	}
	if err == nil && h.sum != h.rec.RecipeSum {
		h.change(h.rec, func(r *record) { r.RecipeSum = h.sum })
	}
	return err
}

// mendList makes the list of the objects of an image that is whole say what
// the image does.
func (s *Store) mendList(ctx context.Context, name string) error {
	content, size, done, err := s.images.at(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer func() { _ = done() }()
	image, err := erofs.Open(content, size)
	if err != nil {
		return err
	}
	want, err := image.Objects()
	if err != nil {
		return err
	}
	var have []tree.Digest
	err = s.eachObject(ctx, name, func(d tree.Digest) bool { have = append(have, d); return true })
	if ctx.Err() != nil || err == nil && slices.Equal(have, want) {
		return ctx.Err()
	}
	s.placing.Lock()
	defer s.placing.Unlock()
	if !s.images.has(name) {
		return nil // removed meanwhile
	}
	if !errors.Is(err, os.ErrNotExist) {
		s.log.WarnContext(ctx, "the list of an image's objects was damaged", "image", name, "error", err)
	}
	if err := s.writeObjects(name, want); err != nil {
		return err
	}
	return os.NewSyscallError("syncfs", unix.Syncfs(s.metafd))
}

// settleAgain makes damaged images of layers anew, where all that have them
// still have their folders.
func (s *Store) settleAgain(image string, recs []*record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rec := range recs {
		now := s.byKey[rec.Key]
		if now == nil || now.ID != rec.ID || !now.Upper || now.Delta != image {
			return false
		}
	}
	for _, rec := range recs {
		s.changeLocked(rec, func(r *record) { r.Delta = "" })
	}
	delete(s.sound, image)
	s.nudge(s.tidy)
	return true
}

// forgetMerged has a damaged merged image made anew, of those of its layers.
func (s *Store) forgetMerged(image string, recs []*record) {
	s.mu.Lock()
	for _, rec := range recs {
		s.changeLocked(rec, func(r *record) {
			if r.Merged == image {
				r.Merged = ""
			}
		})
	}
	delete(s.sound, image)
	s.mu.Unlock()
	s.images.forget(image)
	s.nudge(s.tidy)
}

// remount has whoever mounts the image from now on see the file that now has
// its name.
func (s *Store) remount(name string) error {
	s.images.forget(name)
	return s.shown.renew(&s.images, name)
}

// renew mounts an image that is shown anew. Mounts that stand on the old one
// keep that.
func (sh *shownImages) renew(im *images, name string) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	target := filepath.Join(sh.dir, shortName(name))
	if !isMountpoint(sh.dir, target) {
		return nil
	}
	mount, err := im.mount(name)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return attach(mount, target)
}
