// Package snapshot holds the file trees of images and containers as a stack
// of layers. This file is what every driver promises; snapshottest checks it.
//
// A snapshot is one of three kinds, told apart by type as well as by value:
//
//   - Active: a container's writable tree. Its life begins with Prepare and
//     ends with Commit or Remove.
//   - View: a tree that cannot be changed, for looking.
//   - Committed: a layer that never changes again. Only a Committed snapshot
//     can be a parent.
//
// All kinds share one keyspace: a key names one snapshot, so there is one
// Stat, one Remove and one Walk. Commit moves a snapshot to another key; the
// key of the Active one is free again.
//
//	                Prepare             Commit
//	Committed ────────────────▶ Active ────────▶ Committed
//	    ▲       View
//	    │   ────────────────▶ View
//	    │ Commit
//	Ingest ◀── a layer's tar, unpacked before its parent is known
//
// Layers of images are named by their chain ID (see Chain), so that the same
// layer on the same parents is unpacked once whoever asks for it.
//
// Every method may be called from many goroutines. A method that fails leaves
// things as they were. Whatever a crash leaves half made is swept away by the
// driver when it opens; a crash never leaves half a snapshot under a key.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"regexp"
	"time"

	"berth/base/errs"
	"berth/spec"
)

// Key names a snapshot: 1 to 128 characters out of a-z A-Z 0-9 : . _ -
type Key string

// Kind tells Active, View and Committed apart.
type Kind string

// The kinds.
const (
	KindActive    Kind = "active"
	KindView      Kind = "view"
	KindCommitted Kind = "committed"
)

// Info describes a snapshot.
type Info struct {
	Key     Key               `json:"key"`
	Parent  Key               `json:"parent,omitempty"` // "" at the bottom of a chain
	Kind    Kind              `json:"kind"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Active is a writable snapshot.
type Active struct{ Info }

// View is a snapshot for reading only.
type View struct{ Info }

// Committed is a finished layer.
type Committed struct{ Info }

// Usage is the disk that one snapshot takes by itself, its parents left out.
type Usage struct {
	Size   int64 `json:"size"` // bytes
	Inodes int64 `json:"inodes"`
}

// Mount is what a foreign process hands to mount(2). All Mounts of a snapshot
// are made one after the other on one target. Options of a deep chain may be
// longer than the page that mount(2) takes.
type Mount struct {
	Type, Source string
	Options      []string
}

// Store keeps snapshots. Errors have the kinds named with each method; where
// the disk is full it is Exhausted, and a done ctx is Canceled or Timeout. A
// key of the wrong form is Invalid everywhere it would be created, and simply
// NotFound everywhere else.
type Store interface {
	// Prepare makes a writable snapshot on parent, or an empty one where parent
	// is "". It costs the same however deep or big the parent is.
	//
	// It may become durable a moment after it returns, together with the record
	// that names key; an Active whose record is lost is swept away.
	//
	// Labels UIDMap and GIDMap ask for a tree with shifted owners: see IDMap.
	// Label Volatile asks for speed instead of safety: see there.
	//
	// Exists: key is taken. NotFound: no parent. Conflict: parent is not
	// Committed. Exhausted: the chain would be deeper than MaxDepth.
	Prepare(ctx context.Context, key, parent Key, labels map[string]string) (Active, error)

	// View is as Prepare, for a tree that cannot be changed.
	View(ctx context.Context, key, parent Key, labels map[string]string) (View, error)

	// Mounts says how another process mounts an Active snapshot or a View.
	//
	// NotFound: no such key, or a parent that was lost (see Sync). Conflict:
	// it is Committed. Unsupported: this tree cannot be mounted that way, but
	// Mount may.
	Mounts(ctx context.Context, key Key) ([]Mount, error)

	// Mount mounts an Active snapshot or a View on the folder target, in the
	// caller's mount namespace. The mount is the caller's: it outlives the
	// store, and Unmount takes it down.
	//
	// Kinds as Mounts; Unsupported where the kernel cannot shift owners.
	Mount(ctx context.Context, key Key, target string) error

	// Unmount takes down what Mount put on target. A target that is no mount,
	// or not there, is no error. Files still open on it stay usable.
	Unmount(ctx context.Context, target string) error

	// Commit turns the Active snapshot into the layer name. It costs the same
	// however much was changed. What a mount of it that still exists goes on
	// to write may or may not be in the layer: unmount, or at least pause,
	// first.
	//
	// The layer keeps active's labels, with labels laid over them. As with
	// Prepare the record may become durable a moment later; after a crash that
	// comes first the Active snapshot is there as it was.
	//
	// Exists: name is taken. NotFound: no active. Conflict: active is no
	// Active snapshot.
	Commit(ctx context.Context, name, active Key, labels map[string]string) (Committed, error)

	// Ingest unpacks one layer, an uncompressed tar, on its own, so that all
	// layers of an image are unpacked at once and in any order. It reads layer
	// to its end, beyond the end of the archive, so that a hash over the
	// stream is whole. On failure nothing is left.
	//
	// Whiteouts (.wh.name, .wh..wh..opq) are kept for what is below. Owners,
	// modes, times in nanoseconds, hard links, devices, fifos, user and
	// security xattrs are kept; holes stay holes. Xattrs of the driver's own
	// (trusted.overlay.*) in the tar never act on the mount.
	//
	// Invalid: not a tar, cut short, or it names something outside of the
	// layer, be it by .., a symbolic link or a hard link; or it is beyond the
	// driver's limits. An error of layer's Read comes back in the chain.
	Ingest(ctx context.Context, layer io.Reader) (Ingest, error)

	// Stat describes the snapshot. NotFound: no such key.
	Stat(ctx context.Context, key Key) (Info, error)

	// SetLabels lays labels over those that are there; an empty value takes
	// one away. NotFound: no such key.
	SetLabels(ctx context.Context, key Key, labels map[string]string) error

	// Remove forgets the snapshot at once and frees its disk in the background.
	// A mount of it should be gone first; one that is not stays harmless.
	//
	// NotFound: no such key. Conflict: it has children.
	Remove(ctx context.Context, key Key) error

	// Walk calls fn for each snapshot that was there when it began, in the
	// order of keys, and stops at fn's first error, which it returns. fn may
	// call the store.
	Walk(ctx context.Context, fn func(Info) error) error

	// Usage says what the snapshot takes. It is counted when asked for an
	// Active one and remembered for a Committed one. NotFound: no such key.
	Usage(ctx context.Context, key Key) (Usage, error)

	// Diff writes what the snapshot changes against its parent as a tar layer.
	// The same tree always gives the same bytes. A View gives an empty layer.
	// NotFound: no such key. An error of w's Write comes back in the chain.
	Diff(ctx context.Context, key Key, w io.Writer) error

	// Changes lists the same as Diff by path, in order. As in Diff, a folder in
	// which something changed has changed itself. NotFound: no such key.
	Changes(ctx context.Context, key Key) ([]spec.Change, error)

	// Sync returns when every layer committed before the call would survive a
	// loss of power. Without it the store does so by itself, some time after
	// the commit; a layer that was not yet safe is absent after a loss of
	// power, even if something stands on it: it can be ingested again under
	// its name.
	Sync(ctx context.Context) error

	// Close ends the background work. Mounts stay.
	Close() error
}

// Ingest is a layer that is unpacked and waits for its place in a chain. It
// ends with either Commit or Abort.
type Ingest interface {
	// Commit makes it the layer name on parent ("" for none).
	//
	// Exists: name is taken; the Ingest is then dropped, for a layer of that
	// name is the same layer. NotFound: no parent. Conflict: parent is not
	// Committed. Exhausted: the chain would be deeper than MaxDepth.
	Commit(ctx context.Context, name, parent Key, labels map[string]string) (Committed, error)
	// Size is the sum of the files' bytes.
	Size() int64
	// Abort drops it. After Commit it does nothing.
	Abort(ctx context.Context) error
}

// Volatile is a label of an Active snapshot; any value sets it. Nothing is
// promised of its tree after a loss of power, and fsync on it does nothing. In
// return Unmount need not write it to disk. It suits a container that is
// removed when it ends.
const Volatile = "berth.volatile"

// MaxDepth is the longest chain; the kernel's overlay takes 500 lowers.
const MaxDepth = 500

var validKey = regexp.MustCompile(`^[a-zA-Z0-9:._-]{1,128}$`)

// Check returns an Invalid error where k is not of a key's form.
func (k Key) Check() error {
	if !validKey.MatchString(string(k)) || k == "." || k == ".." {
		return errs.New(errs.Invalid, "snapshot key %.140q: want 1 to 128 of a-z A-Z 0-9 : . _ -", string(k))
	}
	return nil
}

// Chain names the layer of this diff ID on parent, by the OCI rule for chain
// IDs.
func Chain(parent Key, diffID string) Key {
	if parent == "" {
		return Key(diffID)
	}
	sum := sha256.Sum256([]byte(string(parent) + " " + diffID))
	return Key("sha256:" + hex.EncodeToString(sum[:]))
}

// MergeLabels lays labels over old, as SetLabels promises, in a map of its own.
func MergeLabels(old, labels map[string]string) map[string]string {
	merged := make(map[string]string, len(old)+len(labels))
	maps.Copy(merged, old)
	for name, value := range labels {
		if value == "" {
			delete(merged, name)
			continue
		}
		merged[name] = value
	}
	return merged
}
