package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"go.opentelemetry.io/otel/propagation"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/span"
)

const (
	pluginBusy  = 2 * time.Second        // a program that is being replaced is waited for so long
	pluginGrace = 500 * time.Millisecond // for what a killed plugin's pipes still hold
)

// pluginExec runs CNI plugins in the host's network namespace. A plugin that
// is still running when its context ends is killed, with all that it started.
type pluginExec struct {
	version.PluginDecoder
	host *host
}

// FindInPath finds a plugin's program.
func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin gives the plugin stdin and returns what it said.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (out []byte, err error) {
	name, command := filepath.Base(path), commandOf(environ)
	ctx, end := span.Start(ctx, "CNI "+command+" "+name)
	defer func() { end(err) }()
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	for key, value := range carrier { // plugins that trace go on from here
		environ = append(environ, strings.ToUpper(key)+"="+value)
	}
	var stderr []byte
	busy := time.Now().Add(pluginBusy)
	for {
		out, stderr, err = e.run(ctx, path, stdin, environ)
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(busy) || !pause(ctx, 50*time.Millisecond) {
			break
		}
	}
	switch {
	case err == nil:
		return out, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, errs.New(errs.Timeout, "CNI plugin %s did not end its %s in time and was killed", name, command)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, pluginError(name, err, out, stderr)
}

func (e *pluginExec) run(ctx context.Context, path string, stdin []byte, environ []string) (out, problems []byte, err error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, path)
	c.Env, c.Stdin, c.Stdout, c.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return ignore(unix.Kill(-c.Process.Pid, unix.SIGKILL), unix.ESRCH) }
	c.WaitDelay = pluginGrace
	if err := e.host.do(c.Start); err != nil {
		return nil, nil, err
	}
	if err = c.Wait(); errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well; somebody else has its pipes, be it for the moment of a fork
	}
	return stdout.Bytes(), stderr.Bytes(), err
}

func commandOf(environ []string) string {
	for _, v := range environ {
		if command, ok := strings.CutPrefix(v, "CNI_COMMAND="); ok {
			return command
		}
	}
	return ""
}

// tryAgainLater is CNI's code for it.
const tryAgainLater = 11

// pluginError is what a plugin says of its failure: by its result, else by
// what it wrote besides.
func pluginError(name string, err error, out, stderr []byte) error {
	var said types.Error
	text := strings.TrimSpace(string(stderr))
	switch {
	case json.Unmarshal(out, &said) == nil && (said.Msg != "" || said.Code != 0):
		if said.Code == tryAgainLater {
			return errs.New(errs.Unavailable, "%w", &said)
		}
		return &said
	case text != "":
		return fmt.Errorf("CNI plugin %s: %w: %s", name, err, text)
	}
	return fmt.Errorf("CNI plugin %s: %w", name, err)
}
