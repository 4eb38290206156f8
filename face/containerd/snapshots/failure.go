package snapshots

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/base/errs"
)

// codeOf is the code for each kind of error, as containerd's own services use
// them.
func codeOf(k errs.Kind) codes.Code {
	switch k {
	case errs.Invalid:
		return codes.InvalidArgument
	case errs.NotFound:
		return codes.NotFound
	case errs.Exists:
		return codes.AlreadyExists
	case errs.Conflict:
		return codes.FailedPrecondition
	case errs.Denied:
		return codes.PermissionDenied
	case errs.Anonymous:
		return codes.Unauthenticated
	case errs.Exhausted:
		return codes.ResourceExhausted
	case errs.Unavailable:
		return codes.Unavailable
	case errs.Unsupported:
		return codes.Unimplemented
	case errs.Canceled:
		return codes.Canceled
	case errs.Timeout:
		return codes.DeadlineExceeded
	case errs.Internal:
		return codes.Internal
	}
	return codes.OK // no kind of ours
}

// failed makes err an answer. The client is another daemon of root's, whose
// log is where an operator looks: it gets the text of every error.
func failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codeOf(errs.KindOf(err)), fmt.Errorf("%s: %w", doing, err).Error())
}
