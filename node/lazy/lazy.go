// Package lazy lets containers start before all bodies of their image are
// here. It has two halves:
//
//   - a process of its own (Serve), one a machine, which node starts when it is
//     first needed and which outlives it. It serves a FUSE tree that is named
//     like the folder of objects, ab/cdef…, and holds every body that node
//     declares missing. Layers are mounted with that tree behind the folder of
//     objects, so what is here never touches it. An open in it waits until the
//     body is in the folder of objects, and then reads go straight there;
//   - node's half (Set), which knows where in which blob a missing body lies,
//     fetches what is wanted at once, and all else in the background.
//
// It fails closed: a body is shown whole and verified or not at all. An open
// that node cannot satisfy before a deadline fails with EIO, also while there
// is no node; if the process dies, files opened through it fail with ENOTCONN.
//
// On disk, all of it worthless after a reboot: the socket, the pid file, which
// is also the lock, and beside it a .log of the process.
package lazy

import (
	"log/slog"
	"time"

	"berth/image/tree"
)

// Deadline is how long an open waits for its body unless configured otherwise.
const Deadline = 90 * time.Second

// ServeConfig is what the process needs.
type ServeConfig struct {
	Socket   string        // unix SOCK_SEQPACKET, root only
	PidFile  string        // also the lock that makes the process the only one
	Objects  string        // folder of the bodies that are here
	Deadline time.Duration // how long an open waits; Deadline when 0
	Log      *slog.Logger
}

// Missing is a body that is not here.
type Missing struct {
	Object tree.Digest
	Size   int64
}
