package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/base/kv"
	"berth/node/snapshot"
	"berth/node/snapshot/copy"
	"berth/node/snapshot/lcfs"
	"berth/node/snapshot/overlay"
	"berth/spec"
)

// autoDriver is storage.driver where the node is to choose.
const autoDriver = "auto"

// storeConfig is what every driver wants to know.
type storeConfig struct {
	Dir      string
	DB       *kv.DB
	Log      *slog.Logger
	MaxLayer int64
}

// rung is one way of keeping layers.
type rung struct {
	name string // as storage.driver has it
	// bucket is where the driver keeps its records. Rungs that have it in
	// common go on with each other's layers.
	bucket string
	// probe does what the rung needs once, in the folder of the store, and
	// says why it cannot be used. asked says that it was named, so that
	// something that only another rung does better is no objection.
	probe func(ctx context.Context, dir string, asked bool) error
	open  func(ctx context.Context, c storeConfig) (snapshot.Store, error)
}

// ladder is the rungs, the best first.
type ladder []rung

// newLadder is what there is: bodies shared by digest, on image files or loop
// devices; folders that share equal files; whole trees. What was found before
// is remembered in db.
func newLadder(db *kv.DB) ladder {
	var features *lcfs.Features // asked once for both rungs
	layered := func(name string, loop bool) rung {
		return rung{
			name: name, bucket: "lcfs",
			probe: func(ctx context.Context, dir string, asked bool) error {
				if features == nil {
					found, err := lcfs.Remembered(ctx, db, dir)
					if err != nil {
						return err
					}
					features = &found
				}
				switch {
				case !features.Usable(loop):
					return errs.New(errs.Unsupported, "%s", features.Why())
				case !loop && !asked && !features.Nested && features.NestedLoop:
					return errs.New(errs.Unsupported, "no overlay can stand on it; on a loop device one can")
				}
				return nil
			},
			open: func(ctx context.Context, c storeConfig) (snapshot.Store, error) {
				return lcfs.Open(ctx, lcfs.Config{Dir: c.Dir, DB: c.DB, Log: c.Log, MaxLayer: c.MaxLayer, Features: features, Loop: loop})
			},
		}
	}
	whole := func(method copy.Method) rung {
		return rung{
			name: string(method), bucket: "copy",
			probe: func(ctx context.Context, dir string, _ bool) error { return copy.Probe(ctx, dir, method) },
			open: func(ctx context.Context, c storeConfig) (snapshot.Store, error) {
				return copy.Open(ctx, copy.Config{Dir: c.Dir, DB: c.DB, Log: c.Log, MaxLayer: c.MaxLayer, Method: method})
			},
		}
	}
	return ladder{
		layered("lcfs", false),
		layered("lcfs-loop", true),
		{
			name: "overlay", bucket: "snapshot",
			probe: func(ctx context.Context, dir string, _ bool) error { return overlay.Probe(ctx, dir) },
			open: func(ctx context.Context, c storeConfig) (snapshot.Store, error) {
				return overlay.Open(ctx, overlay.Config{Dir: c.Dir, DB: c.DB, Log: c.Log, MaxLayer: c.MaxLayer})
			},
		},
		whole(copy.Btrfs),
		whole(copy.Reflink),
		whole(copy.Copy),
	}
}

// names lists what storage.driver may be.
func (l ladder) names() []string {
	names := []string{autoDriver}
	for _, r := range l {
		names = append(names, r.name)
	}
	return names
}

// choice is the rung that a store is opened on.
type choice struct {
	rung
	// ladder is what was found on the way down, the rung itself last.
	ladder []spec.StorageDriver
	// note says that it is not what was asked for, and why.
	note string
}

// choose picks the highest rung that works in dir, or the named one, and goes
// on with layers that are there: held is the bucket they are in, "" for none.
//
// Invalid: there is no rung of that name. Unsupported: none works, or not the
// named one, or not the one that can read the layers that are there.
func (l ladder) choose(ctx context.Context, dir, named, held string) (choice, error) {
	if named == "" {
		named = autoDriver
	}
	if !slices.Contains(l.names(), named) {
		return choice{}, errs.New(errs.Invalid, "there is no storage driver %q: want one of %s", named, strings.Join(l.names(), ", "))
	}
	var c choice
	if at := slices.IndexFunc(l, func(r rung) bool { return r.name == named }); at >= 0 && held != "" && l[at].bucket != held {
		c.note = fmt.Sprintf("the layers that are there are not of %s: remove the images to change the driver", named)
		named = autoDriver
	}
	var failed []error
	for _, r := range l {
		err := l.try(ctx, r, dir, named, held)
		if err == nil {
			c.rung = r
			c.ladder = append(c.ladder, spec.StorageDriver{Name: r.name})
			return c, nil
		}
		if ctx.Err() != nil {
			return choice{}, err
		}
		if !errors.Is(err, errNotWanted) {
			failed = append(failed, fmt.Errorf("%s: %w", r.name, err))
		}
		c.ladder = append(c.ladder, spec.StorageDriver{Name: r.name, Why: err.Error()})
	}
	return choice{}, l.none(named, held, failed)
}

// errNotWanted marks a rung that was not tried.
var errNotWanted = errors.New("")

// try says why a rung cannot be taken.
func (l ladder) try(ctx context.Context, r rung, dir, named, held string) error {
	switch {
	case held != "" && r.bucket != held:
		return fmt.Errorf("the layers that are there are of another driver%w", errNotWanted)
	case named != autoDriver && r.name != named:
		return fmt.Errorf("%s was asked for%w", named, errNotWanted)
	}
	return r.probe(ctx, dir, named != autoDriver)
}

func (l ladder) none(named, held string, failed []error) error {
	why := errors.Join(failed...)
	switch {
	case named != autoDriver:
		return errs.New(errs.Unsupported, "storage driver %w", why)
	case held != "":
		return errs.New(errs.Unsupported, "the layers that are there need a storage driver that does not work here any more: %w", why)
	}
	return errs.New(errs.Unsupported, "no storage driver works here: %w", why)
}

const (
	nodeBucket = "node"
	driverKey  = "storage" // the bucket of the driver that was used last
)

// held returns the bucket of the driver that has snapshots here, "" for none.
// If several have, it is the one that was used last.
func (l ladder) held(ctx context.Context, db *kv.DB) (bucket string, err error) {
	err = db.Update(ctx, func(tx *kv.Tx) error { // after what waits to be written
		bucket = ""
		last := string(tx.Get(nodeBucket, driverKey))
		for _, r := range l {
			if r.bucket == bucket || bucket == last && bucket != "" {
				continue
			}
			has, err := hasAny(tx, r.bucket)
			if err != nil {
				return err
			}
			if has && (bucket == "" || r.bucket == last) {
				bucket = r.bucket
			}
		}
		return nil
	})
	return bucket, err
}

var errEnough = errors.New("enough")

func hasAny(tx *kv.Tx, bucket string) (bool, error) {
	err := tx.Each(bucket, "", func(string, []byte) error { return errEnough })
	if errors.Is(err, errEnough) {
		return true, nil
	}
	return false, err
}

// openStore opens the store of layers on the best rung that works, or on the
// named one.
func (l ladder) openStore(ctx context.Context, named string, config storeConfig) (snapshot.Store, choice, error) {
	held, err := l.held(ctx, config.DB)
	if err != nil {
		return nil, choice{}, fmt.Errorf("read which storage driver was used: %w", err)
	}
	c, err := l.choose(ctx, config.Dir, named, held)
	if err != nil {
		return nil, choice{}, err
	}
	for _, missed := range c.ladder[:len(c.ladder)-1] {
		config.Log.DebugContext(ctx, "a storage driver is not used", "driver", missed.Name, "why", missed.Why)
	}
	if c.note != "" {
		config.Log.WarnContext(ctx, "the storage driver stays as it is", "driver", c.name, "asked", named, "why", c.note)
	}
	store, err := c.open(ctx, config)
	if err != nil {
		return nil, choice{}, err
	}
	config.Log.InfoContext(ctx, "layers are kept", "driver", c.name)
	err = config.DB.Update(ctx, func(tx *kv.Tx) error { return tx.Put(nodeBucket, driverKey, []byte(c.bucket)) })
	if err != nil {
		return nil, choice{}, errors.Join(err, store.Close())
	}
	return store, c, nil
}

func (n *node) openSnapshots(ctx context.Context) (err error) {
	n.snapshots, n.storage, err = newLadder(n.db).openStore(ctx, n.config.Storage.Driver, storeConfig{
		Dir: n.config.Root, DB: n.db, Log: n.log.With("room", "snapshot"), MaxLayer: n.config.Registry.MaxLayerBytes,
	})
	if err != nil {
		return err
	}
	n.onClose("snapshots", n.snapshots.Close)
	return nil
}
