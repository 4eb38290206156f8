package lcfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
	"berth/node/snapshot"
)

// An image that nothing was mounted on for a while rests: it is kept
// compressed, which takes a fifth of the room, as <name>.erofs.zst. That file
// gets its name only when it is safe from a loss of power, and stays from then
// on; the plain one is deleted then, and made of it again for who mounts the
// image. Readers take whichever there is.

const restSuffix = ".zst"

// restPath is where an image rests.
func (im *images) restPath(name string) string { return im.path(name) + restSuffix }

// open opens an image for reading from the start to the end, past the page
// cache where it is plain.
func (im *images) open(name string) (io.ReadCloser, error) {
	f, err := os.Open(im.path(name))
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	return im.openResting(name)
}

func (im *images) openResting(name string) (*resting, error) {
	f, err := os.Open(im.restPath(name))
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &resting{z, f}, nil
}

// has says whether the image is there, in either form.
func (im *images) has(name string) bool {
	for _, path := range []string{im.path(name), im.restPath(name)} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// resting reads a compressed image. What is wrong with it is damage.
type resting struct {
	z *zstd.Decoder
	f *os.File
}

func (r *resting) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	var path *os.PathError
	if err != nil && err != io.EOF && !errors.As(err, &path) { //nolint:errorlint // io.EOF is never wrapped
		err = &os.PathError{Op: "read", Path: r.f.Name(), Err: fmt.Errorf("%w: %w", unix.EBADMSG, err)}
	}
	return n, err
}

func (r *resting) Close() error {
	r.z.Close()
	return r.f.Close()
}

// at opens an image for reading anywhere in it.
func (im *images) at(name string) (r io.ReaderAt, size int64, done func() error, err error) {
	content, err := im.open(name)
	if err != nil {
		return nil, 0, nil, err
	}
	if f, plain := content.(*os.File); plain {
		info, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, 0, nil, err
		}
		return f, info.Size(), f.Close, nil
	}
	defer content.Close()
	all, err := io.ReadAll(content)
	return bytes.NewReader(all), int64(len(all)), func() error { return nil }, err
}

// wake makes the plain file of an image that rests, so that it can be mounted.
// waking is held.
func (im *images) wake(name string) error {
	if _, err := os.Stat(im.path(name)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	content, err := im.open(name)
	if err != nil {
		return err
	}
	defer content.Close()
	f, err := os.CreateTemp(im.dir, temporaryPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), content); err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != name {
		return errs.New(errs.Internal, "image %.16s is damaged where it rests", name)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), im.path(name))
}

// restLoop puts images to rest.
func (s *Store) restLoop(ctx context.Context) {
	for {
		select {
		case <-s.restless:
		case <-ctx.Done():
			return
		}
		if !snapshot.Rest(ctx, s.restAfter) {
			return
		}
		if err := s.restImages(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "images stay as they are for now", "error", err)
		}
	}
}

// restImages puts those images to rest that nothing stands on, and that were
// not wanted lately.
func (s *Store) restImages(ctx context.Context) error {
	var ready []string
	start := time.Now()
	var failed, damage error
	made := map[string]string{} // temporary files, by image
	defer func() {
		for _, file := range made {
			_ = os.Remove(file)
		}
	}()
	for _, name := range s.idleImages() {
		if start, failed = object.Gentle.Rest(ctx, start); failed != nil {
			return failed
		}
		switch file, err := s.images.compress(ctx, name); {
		case errors.Is(err, os.ErrNotExist): // removed meanwhile
		case err != nil:
			damage = errors.Join(damage, fmt.Errorf("image %.16s: %w", name, err))
		case file != "":
			made[name] = file
			ready = append(ready, name)
		default:
			ready = append(ready, name)
		}
	}
	if len(made) > 0 {
		if err := unix.Syncfs(s.metafd); err != nil {
			return os.NewSyscallError("syncfs", err)
		}
		for name, file := range made {
			if err := s.placeResting(name, file); err != nil {
				return err
			}
		}
	}
	if len(ready) > 0 {
		if err := unix.Fsync(s.metafd); err != nil { // the names, too
			return os.NewSyscallError("fsync", err)
		}
	}
	for _, name := range ready {
		if err := s.dropPlain(name); err != nil {
			return err
		}
	}
	return damage
}

// idleImages lists the plain images that may rest, and sees to it that they
// are looked at again that were wanted lately. Whoever ends what others are
// wanted for has them looked at.
func (s *Store) idleImages() (idle []string) {
	s.mu.RLock()
	names := map[string]bool{}
	for _, rec := range s.byKey {
		for _, name := range rec.images() {
			names[name] = names[name] || rec.Boot != "" || rec.Fresh != "" || s.busyImage(name)
		}
	}
	s.mu.RUnlock()
	again := false
	for name, busy := range names {
		info, err := os.Stat(s.images.path(name))
		switch {
		case err != nil: // it rests already
		case busy:
		case time.Since(info.ModTime()) < s.restAfter || time.Since(s.images.usedLast(name)) < s.restAfter:
			again = true
		default:
			idle = append(idle, name)
		}
	}
	if again {
		s.nudge(s.restless)
	}
	return idle
}

// busyImage says whether something needs the plain image. mu is held.
func (s *Store) busyImage(name string) bool {
	return s.uses.images[name] > 0 || s.uses.shown[name] > 0 || s.making[name] > 0
}

// compress writes the compressed form of an image to a temporary file; "" if
// the image rests in good order already.
func (im *images) compress(ctx context.Context, name string) (file string, err error) {
	plain, err := os.Open(im.path(name))
	if err != nil {
		return "", err
	}
	defer plain.Close()
	if im.restsWell(ctx, name) {
		return "", nil
	}
	f, err := os.CreateTemp(im.dir, temporaryPrefix)
	if err != nil {
		return "", err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	if _, err := io.Copy(z, io.TeeReader(plain, sum)); err != nil {
		return "", errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	if hex.EncodeToString(sum.Sum(nil)) != name {
		return "", errs.New(errs.Internal, "it is damaged")
	}
	return f.Name(), nil
}

// restsWell says whether the compressed image is there and whole.
func (im *images) restsWell(ctx context.Context, name string) bool {
	sum, _, err := im.digest(ctx, name, func(context.Context, int64) error { return nil })
	return err == nil && hex.EncodeToString(sum[:]) == name
}

// digest hashes what a compressed image holds.
func (im *images) digest(ctx context.Context, name string, pace pacer) (sum tree.Digest, size int64, err error) {
	content, err := im.openResting(name)
	if err != nil {
		return sum, 0, err
	}
	defer content.Close()
	hash := sha256.New()
	block := checkBlocks.Get().(*[]byte)
	defer checkBlocks.Put(block)
	for {
		n, err := content.Read(*block)
		hash.Write((*block)[:n])
		size += int64(n)
		if err == io.EOF { //nolint:errorlint // never wrapped
			hash.Sum(sum[:0])
			return sum, size, nil
		}
		if err == nil {
			err = pace(ctx, int64(n))
		}
		if err != nil {
			return sum, size, err
		}
	}
}

// placeResting gives a compressed image its name, while the image is wanted.
func (s *Store) placeResting(name, file string) error {
	s.placing.Lock()
	defer s.placing.Unlock()
	s.mu.RLock()
	_, sound := s.sound[name]
	wanted := sound && s.isNamedLocked(name)
	s.mu.RUnlock()
	if !wanted {
		return nil
	}
	return os.Rename(file, s.images.restPath(name))
}

// dropPlain deletes the plain file of an image that rests, unless somebody
// wants it by now.
func (s *Store) dropPlain(name string) error {
	im := &s.images
	im.mu.Lock()
	defer im.mu.Unlock()
	im.waking.Lock()
	defer im.waking.Unlock()
	s.mu.RLock()
	_, sound := s.sound[name]
	busy := s.busyImage(name) || !sound
	s.mu.RUnlock()
	if _, err := os.Stat(im.restPath(name)); busy || err != nil {
		return nil //nolint:nilerr // it was removed
	}
	delete(im.used, name)
	if _, mounted := im.mounts[name]; mounted {
		im.forgetLocked(name)
	}
	if err := os.Remove(im.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// dropWoken deletes plain files of images that rest, as the store opens after
// a restart of the machine: they may be torn, the others are not.
func (s *Store) dropWoken() error {
	entries, err := os.ReadDir(s.images.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		plain, resting := strings.CutSuffix(e.Name(), restSuffix)
		if !resting {
			continue
		}
		if err := os.Remove(filepath.Join(s.images.dir, plain)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
