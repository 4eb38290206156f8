package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/container"
)

// output runs one of the program's commands to its end and gives what it
// printed. Its complaints become the error.
func (p *program) output(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := p.bound(ctx, args[0])
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, append(append([]string{}, p.args...), args...)...)
	cmd.Env = environment()
	cmd.Dir = p.root
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it is killed with what it has started
	cmd.Cancel = func() error { return ignoreGone(unix.Kill(-cmd.Process.Pid, unix.SIGKILL)) }
	cmd.WaitDelay = killGrace
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // a hook of it left something behind that holds the pipe
		return out, nil
	case p.hung(ctx, args[0]) != nil:
		return nil, p.hung(ctx, args[0])
	case ctx.Err() != nil:
		return nil, fmt.Errorf("runtime %s: %s: %w", p.name, args[0], ctx.Err())
	case complaints.Len() == 0:
		return nil, fmt.Errorf("runtime %s: %s: %w", p.name, args[0], err)
	}
	return nil, failure(p.name, args[0], complaints.String())
}

// killGrace is for what the pipes of a killed command still hold.
const killGrace = 500 * time.Millisecond

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// failure makes an error of what a runtime said, in JSON lines or plainly.
// For what a user can do something about, it has a kind and an exit code.
func failure(runtime, command, said string) error {
	text := strings.Replace(complaint(said), "open executable: Operation not permitted", "the command is a folder, or not to be executed", 1)
	if matches(text, "mount_setattr.*invalid argument") { // of crun; runc says what it means
		text += " (maybe its file system cannot map owners on this kernel)"
	}
	err := fmt.Errorf("runtime %s: %s: %s", runtime, command, text)
	if command == "run" || command == "create" || command == "exec" || command == "start" {
		if code, kind := startFailure(text); code != 0 {
			return &container.StartError{Code: code, Err: errs.New(kind, "%w", err)}
		}
	}
	switch {
	case matches(text, `does not exist`, `not found`, `no such process`, `error opening file .*/status`, `not running`, `process already finished`, `container .*stopped`):
		return errs.New(errs.NotFound, "%w", err)
	case matches(text, `paused`, `not in .* state`, `cannot \w+ a container`):
		return errs.New(errs.Conflict, "%w", err)
	}
	if command == "run" || command == "create" || command == "exec" || command == "start" {
		if matches(text, `no space left on device`, `disk quota exceeded`) {
			err = errs.New(errs.Exhausted, "%w", err)
		}
		return &container.StartError{Code: 128, Err: err}
	}
	return err
}

// startFailure tells apart why a process could not be started; 0 where it is
// none of the reasons that people know an exit code for.
func startFailure(text string) (code int, kind errs.Kind) {
	switch {
	case matches(text,
		`executable file .*not found`,                                             // runc and crun, a name looked up in PATH
		`exec: ".*": stat .*no such file or directory`,                            // runc
		`(exec|execv[pe]*|open executable).*no such file or dir`,                  // crun, a path
		`error finding executable`, `failed to load .*no such file or directory`): // runsc
		return 127, errs.NotFound
	case matches(text,
		`exec.*(permission denied|is a directory|exec format error|not executable)`, `not to be executed`,
		`(failed to load|error loading).*(permission denied|exec format error|invalid|is a directory|not executable)`):
		return 126, errs.Invalid
	case matches(text, `mount_setattr.*invalid argument`, `MOUNT_ATTR_IDMAP.*invalid argument`):
		return 128, errs.Unsupported
	}
	return 0, ""
}

func matches(text string, patterns ...string) bool {
	return regexp.MustCompile(`(?is)` + strings.Join(patterns, "|")).MatchString(text)
}

// complaint is the sentence that matters in a runtime's log: the last error.
func complaint(said string) string {
	last := ""
	for line := range strings.Lines(said) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg != "" && (entry.Level == "error" || entry.Level == "fatal" || last == "") {
			last = entry.Msg
		}
	}
	if last == "" {
		last = strings.TrimSpace(said)
	}
	if last == "" {
		last = "failed without a word"
	}
	return strings.TrimSpace(last)
}
