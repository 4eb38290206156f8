package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// overlayColumn is Berth's own overlay driver, which the layer store is
// compared with too.
const overlayColumn = "berth overlay"

// worker is a program that holds one store of snapshots and does what it is
// told: bench/store with a driver of Berth, or peer with containerd's. What a
// call takes is measured in there, without the way to and fro.
type worker struct {
	column, dir string
	argv        []string
	logs        io.Writer

	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
	made    int // snapshots, for their names
	used    bool
}

func (w *worker) start() error {
	cmd := &exec.Cmd{Path: w.argv[0], Args: w.argv, Stderr: w.logs, Env: os.Environ()}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for the bench
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", w.argv[0], err)
	}
	w.cmd, w.in, w.answers = cmd, in, bufio.NewReader(out)
	return nil
}

// stop ends the worker once it has closed its store.
func (w *worker) stop() error {
	if w.cmd == nil {
		return nil
	}
	cmd := w.cmd
	w.cmd = nil
	return errors.Join(w.in.Close(), cmd.Wait())
}

// request names a snapshot by key. Commit makes Key of the active Parent.
type request struct {
	Verb   string `json:"verb"`
	Key    string `json:"key,omitempty"`
	Parent string `json:"parent,omitempty"`
	Path   string `json:"path,omitempty"`

	Volatile bool `json:"volatile,omitempty"`
}

// do makes one call and returns what it took.
func (w *worker) do(q request) (time.Duration, error) {
	w.used = true
	line, err := json.Marshal(q)
	if err != nil {
		return 0, err
	}
	if _, err := w.in.Write(append(line, '\n')); err != nil {
		return 0, err
	}
	text, err := w.answers.ReadBytes('\n')
	if err != nil {
		return 0, fmt.Errorf("%s: %w", w.column, err)
	}
	var answer struct {
		Took  time.Duration `json:"took"`
		Error string        `json:"error"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, err
	}
	if answer.Error != "" {
		return 0, fmt.Errorf("%s: %s %s: %s", w.column, q.Verb, q.Key, answer.Error)
	}
	return answer.Took, nil
}

// all makes calls one after the other and returns what they took together.
func (w *worker) all(calls ...request) (sum time.Duration, err error) {
	for _, q := range calls {
		took, err := w.do(q)
		if err != nil {
			return 0, err
		}
		sum += took
	}
	return sum, nil
}

// name makes a key that no snapshot has yet.
func (w *worker) name(what string) string {
	w.made++
	return fmt.Sprintf("%s-%d", what, w.made)
}

func (w *worker) cpu() (time.Duration, error) { return cpu(w.cmd.Process.Pid) }

// lull is longer than any background work of ours waits for company.
const lull = 2500 * time.Millisecond

// rest waits until the workers have nothing left to do in the background.
func rest(ctx context.Context, workers ...*worker) error {
	var pids []int
	for _, w := range workers {
		if !w.used {
			continue
		}
		if _, err := w.do(request{Verb: "sync"}); err != nil {
			return err
		}
		w.used = false
		if w.column != peerColumn { // which has no background
			pids = append(pids, w.cmd.Process.Pid)
		}
	}
	if len(pids) == 0 {
		return nil
	}
	return quiet(ctx, lull, pids...)
}

// quiet waits until the processes have hardly run for a while.
func quiet(ctx context.Context, lull time.Duration, pids ...int) error {
	const tick = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	last, calm := time.Duration(0), time.Now()
	for time.Since(calm) < lull {
		now, err := cpu(pids...)
		if err != nil {
			return err
		}
		if now-last > time.Millisecond*time.Duration(len(pids)) {
			calm = time.Now()
		}
		last = now
		if err := pause(ctx, tick); err != nil {
			return fmt.Errorf("wait for background work to end: %w", err)
		}
	}
	return nil
}

// unpack makes the chain of an image, and returns its layers' keys.
func (w *worker) unpack(tag string, layers []string) (keys []string, err error) {
	parent := ""
	for i, path := range layers {
		key := fmt.Sprintf("%s.%d", tag, i+1)
		if _, err := w.do(request{Verb: "layer", Key: key, Parent: parent, Path: path}); err != nil {
			return nil, err
		}
		keys, parent = append(keys, key), key
	}
	return keys, nil
}

// removeAll removes snapshots, the last one first.
func (w *worker) removeAll(keys []string) error {
	for _, key := range slices.Backward(keys) {
		if _, err := w.do(request{Verb: "remove", Key: key}); err != nil {
			return err
		}
	}
	return nil
}

// newWorkers makes the three stores side by side on the place's disk.
func newWorkers(p *place, s settings, logs io.Writer) ([]*worker, error) {
	ours, err := filepath.Abs(filepath.Join(s.peerDir, "store"))
	if err != nil {
		return nil, err
	}
	made := func(column, dir string, argv ...string) *worker {
		return &worker{column: column, dir: dir, argv: argv, logs: logs}
	}
	native, store, other := p.disk("snapshots-containerd"), p.disk("snapshots-berth"), p.disk("snapshots-overlay")
	argv := []string{ours, "-driver", s.driver, "-dir", store}
	if s.profile != "" {
		argv = append(argv, "-cpuprofile", s.profile)
	}
	return []*worker{
		made(peerColumn, native, filepath.Join(filepath.Dir(ours), "peer"), "snapshots", native),
		made(ourColumn, store, argv...),
		made(overlayColumn, other, ours, "-driver", "overlay", "-dir", other),
	}, nil
}
