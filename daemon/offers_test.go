package daemon

import (
	"berth/node/image"
	"berth/node/snapshot/lcfs"
)

// What the layer store offers, and the images' room uses where it is there:
// an offer of another shape would go unseen.
var (
	_ image.Exact      = (*lcfs.Store)(nil)
	_ image.Settler    = (*lcfs.Store)(nil)
	_ image.Scrubber   = (*lcfs.Store)(nil)
	_ image.Accountant = (*lcfs.Store)(nil)
)
