// Package rosetta stands in for the one that tells the docker command line
// whether Apple's translator runs it: not on Linux.
package rosetta

import "runtime"

// Available says whether the translator is there.
func Available() bool { return false }

// Enabled says whether this program runs in it.
func Enabled() bool { return false }

// NativeArch is the machine's own architecture.
func NativeArch() string { return runtime.GOARCH }
