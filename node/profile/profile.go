// Package profile notes which files containers of an image open when they
// start, and in what order, so that the next machine or the next pull can
// fetch those first.
//
// While a container starts, the kernel tells of every open on the superblock
// of its root (fanotify, FAN_OPEN): by read, mmap and exec alike, for about a
// microsecond each. Paths are turned into digests of bodies when the
// recording ends. There is one profile for an image; it is made anew when it
// has grown old. Profiles lie in bucket "node.profile" by the image's ID, also
// for a while after the image has been removed.
package profile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"berth/base/errs"
	"berth/base/kv"
	"berth/image/tree"
)

const (
	bucket = "node.profile"
	// pathsLimit bounds what is noted of one start.
	pathsLimit = 20_000
	// keptProfiles bounds how many there are.
	keptProfiles = 500
)

// Config is what a Set needs.
type Config struct {
	DB *kv.DB
	// Bodies turns paths of an image's files into the digests of their bodies;
	// what has none is left out.
	Bodies func(ctx context.Context, imageID string, paths []string) ([]tree.Digest, error)
	// Window is how long a start is watched; 30 s when 0.
	Window time.Duration
	// Age is how old a profile may grow before it is made anew; a week when 0.
	Age time.Duration
	// Keep is how long it is kept unused; 30 days when 0.
	Keep time.Duration
	Log  *slog.Logger
}

// Set is the profiles of a node. Safe for concurrent use.
type Set struct {
	Config
	life context.Context //nolint:containedctx // recordings end with it
	stop context.CancelFunc
	work sync.WaitGroup

	mu        sync.Mutex
	recording map[string]bool // images
	off       bool            // this kernel cannot
}

// record is one profile.
type record struct {
	At     time.Time `json:"at"`
	Used   time.Time `json:"used"`
	Bodies []byte    `json:"bodies"` // digests, one after the other
}

// Open makes a Set.
func Open(ctx context.Context, c Config) *Set {
	c.Window = cmp.Or(c.Window, 30*time.Second)
	c.Age = cmp.Or(c.Age, 7*24*time.Hour)
	c.Keep = cmp.Or(c.Keep, 30*24*time.Hour)
	s := &Set{Config: c, recording: map[string]bool{}}
	s.life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// Close ends recordings that run; what they have is kept.
func (s *Set) Close() error {
	s.stop()
	s.work.Wait()
	return nil
}

// Watch records what is opened below root, the mount of a container that is
// about to start, unless there is a profile of its image, or one is being
// made. It costs nothing but a wish for a faster start: where it cannot work,
// it does not.
func (s *Set) Watch(ctx context.Context, imageID, root string) {
	if !s.begin(imageID) {
		return
	}
	w, err := watch(root)
	if err != nil {
		s.end(imageID, isUnsupported(err))
		s.Log.DebugContext(ctx, "the start of a container is not recorded", "image", imageID, "err", err)
		return
	}
	s.work.Go(func() {
		defer s.end(imageID, false)
		paths := w.paths(s.life, s.Window, root)
		if err := s.keep(context.WithoutCancel(ctx), imageID, paths); err != nil {
			s.Log.WarnContext(ctx, "what a container opened is not kept", "image", imageID, "err", err)
		}
	})
}

// begin says whether a recording is wanted, and takes it.
func (s *Set) begin(imageID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off || imageID == "" || s.recording[imageID] || s.life.Err() != nil {
		return false
	}
	if rec, found, err := s.get(imageID); err != nil || found && time.Since(rec.At) < s.Age {
		return false
	}
	s.recording[imageID] = true
	return true
}

func (s *Set) end(imageID string, off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.recording, imageID)
	s.off = s.off || off
}

func (s *Set) get(imageID string) (rec record, found bool, err error) {
	err = s.DB.View(func(tx *kv.Tx) (err error) {
		rec, found, err = kv.GetJSON[record](tx, bucket, imageID)
		return err
	})
	return rec, found, err
}

func (s *Set) keep(ctx context.Context, imageID string, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	digests, err := s.Bodies(ctx, imageID, paths)
	if errors.Is(err, errs.NotFound) || len(digests) == 0 {
		return nil // the image is gone
	}
	if err != nil {
		return fmt.Errorf("find what was opened: %w", err)
	}
	now := time.Now().UTC()
	rec := record{At: now, Used: now}
	seen := map[tree.Digest]bool{}
	for _, d := range digests {
		if !seen[d] {
			seen[d] = true
			rec.Bodies = append(rec.Bodies, d[:]...)
		}
	}
	s.DB.Later(func(tx *kv.Tx) error {
		if err := kv.PutJSON(tx, bucket, imageID, rec); err != nil {
			return err
		}
		return s.expire(tx)
	})
	return nil
}

// expire deletes profiles that nobody used for long, and too many.
func (s *Set) expire(tx *kv.Tx) error {
	type one struct {
		image string
		used  time.Time
	}
	var all []one
	err := kv.EachJSON(tx, bucket, "", func(image string, rec record) error {
		all = append(all, one{image, rec.Used})
		return nil
	})
	slices.SortFunc(all, func(a, b one) int { return b.used.Compare(a.used) })
	for i, p := range all {
		if i >= keptProfiles || time.Since(p.used) > s.Keep {
			err = errors.Join(err, tx.Delete(bucket, p.image))
		}
	}
	return err
}

// First lists the bodies that containers of an image open first, in order;
// none where that is not known.
func (s *Set) First(ctx context.Context, imageID string) []tree.Digest {
	rec, found, err := s.get(imageID)
	if err != nil || !found {
		if err != nil {
			s.Log.WarnContext(ctx, "a profile cannot be read", "image", imageID, "err", err)
		}
		return nil
	}
	rec.Used = time.Now().UTC()
	s.DB.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, bucket, imageID, rec) })
	var first []tree.Digest
	for b := rec.Bodies; len(b) >= len(tree.Digest{}); b = b[len(tree.Digest{}):] {
		first = append(first, tree.Digest(b[:len(tree.Digest{})]))
	}
	return first
}
