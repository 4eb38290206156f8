package lcfs

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"berth/base/clock"
	"berth/base/errs"
	"berth/base/kv"
)

// featuresKey is where what Probe found is kept.
const featuresKey = "features"

// probing changes when Probe tries something else than before.
const probing = 2

// remembered is what was found, and where.
type remembered struct {
	Boot, Kernel, Dir string
	Device            uint64
	Probing           int
	Features          Features
}

// Remembered is Probe, but for a folder that was found good since the machine
// booted, or that has no room left to try in and was found good under the same
// kernel: a full disk must not keep a node from starting.
func Remembered(ctx context.Context, db *kv.DB, dir string) (Features, error) {
	here := remembered{Dir: dir, Probing: probing}
	var err error
	if here.Boot, err = clock.Boot(); err != nil {
		return Features{}, err
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err == nil {
		here.Kernel = unix.ByteSliceToString(kernel.Release[:])
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil {
		here.Device = st.Dev
	}
	var before remembered
	var known bool
	err = db.View(func(tx *kv.Tx) (err error) {
		before, known, err = kv.GetJSON[remembered](tx, stateBucket, featuresKey)
		return err
	})
	if err != nil {
		return Features{}, err
	}
	if known && before.Boot == here.Boot && before.isFor(here) && before.Features.Usable(false) {
		return before.Features, nil
	}
	found, err := Probe(ctx, dir)
	if errors.Is(err, errs.Exhausted) && known && before.isFor(here) {
		return before.Features, nil
	}
	if err != nil {
		return Features{}, err
	}
	here.Features = found
	db.Later(func(tx *kv.Tx) error { return kv.PutJSON(tx, stateBucket, featuresKey, here) })
	return found, nil
}

// isFor says whether what was found holds in the other place too.
func (r remembered) isFor(other remembered) bool {
	return r.Kernel == other.Kernel && r.Dir == other.Dir && r.Device == other.Device && r.Probing == other.Probing
}
