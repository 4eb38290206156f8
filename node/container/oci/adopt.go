package oci

import (
	"berth/node/container"
	"berth/node/keeper"
)

// Adopt is a process that k holds since an earlier node, whichever runtime
// started it.
func Adopt(k Keeper, p *keeper.Process) (*container.Process, error) {
	return (&Runtime{keeper: k}).process(p)
}
