package shim

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"berth/base/errs"
	"berth/node/container"
)

// startError makes of why a process could not be started what people know: an
// exit code and, where they can do something about it, a kind. Shims pass on
// what their runtimes say.
func (r *Runtime) startError(err error) error {
	if err == nil {
		return nil
	}
	switch errs.KindOf(err) {
	case errs.Timeout, errs.Canceled, errs.Unavailable, errs.Exists:
		return fmt.Errorf("runtime %s: %w", r.name, err)
	}
	if _, told := errors.AsType[*container.StartError](err); told {
		return err
	}
	err = fmt.Errorf("runtime %s: %w", r.name, err)
	switch text := err.Error(); {
	case matches(text, `executable file .*not found`, `exec: .*no such file or directory`, `exec.* no such file or directory`,
		`error finding executable`, `failed to load .*no such file or directory`):
		return &container.StartError{Code: 127, Err: errs.New(errs.NotFound, "%w", err)}
	case matches(text, `exec.*(permission denied|is a directory|exec format error|not executable|operation not permitted)`,
		`failed to load.*(permission denied|exec format error|invalid|is a directory|not executable)`):
		return &container.StartError{Code: 126, Err: errs.New(errs.Invalid, "%w", err)}
	}
	return &container.StartError{Code: 128, Err: err}
}

func matches(text string, patterns ...string) bool {
	return regexp.MustCompile(`(?is)` + strings.Join(patterns, "|")).MatchString(text)
}
