package errs

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// IsAny says whether err is one of the system's.
func IsAny(err error, kinds ...unix.Errno) bool {
	return slices.ContainsFunc(kinds, func(kind unix.Errno) bool { return errors.Is(err, kind) })
}

// Full gives an error of a full disk, or of a used-up quota, its kind.
func Full(err error) error {
	if IsAny(err, unix.ENOSPC, unix.EDQUOT) && !errors.Is(err, Exhausted) {
		return New(Exhausted, "%w", err)
	}
	return err
}
