package image

import (
	"context"
	"io"

	"berth/node/snapshot"
)

// What a store of snapshots may offer, and this room then uses.

// Exact gives back the tars that layers were made from.
type Exact interface {
	// Tar writes the uncompressed tar of a Committed snapshot, byte for byte
	// as it came: its sha256 is the layer's diff ID. NotFound: no such key.
	// Unsupported: this one cannot be written again. An error of w's Write
	// comes back in the chain.
	Tar(ctx context.Context, key snapshot.Key, w io.Writer) error
}

// Settler makes a chain ready to be mounted at its best.
type Settler interface {
	// Settle is called once an image is whole, with its topmost layer.
	Settle(ctx context.Context, key snapshot.Key) error
}

// Accountant says what layers take of the disk.
type Accountant interface {
	// Shares answers for each group of chains, by the keys of their topmost
	// layers, which are Committed. What only one group needs is its own, what
	// several need is shared; what no group needs is nobody's. A key that is
	// not there counts for nothing. Totals is of the whole store.
	Shares(ctx context.Context, groups map[string][]snapshot.Key) (map[string]snapshot.Share, snapshot.Totals, error)
}

// Scrubber reads what it keeps and holds it against its digests.
type Scrubber interface {
	// Scrub tells fn of each thing that it has read, in an order that stays
	// the same, beginning behind the place after ("" for all). It asks pace
	// before it reads bytes, which returns when that many may be read. It
	// stops at an error of either and returns it. What comes and goes
	// meanwhile may be left out.
	Scrub(ctx context.Context, after string, pace func(ctx context.Context, bytes int64) error, fn func(snapshot.Checked) error) error
	// Heal writes again what is missing or damaged of the layer key, from the
	// same uncompressed tar that it was made from, which it reads to its end.
	// NotFound: no such key. Invalid: it is not that tar.
	Heal(ctx context.Context, key snapshot.Key, tar io.Reader) error
}
