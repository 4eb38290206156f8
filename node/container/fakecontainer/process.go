package fakecontainer

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/base/errs"
	"berth/node/container"
)

// script is what a process does.
type script struct {
	output string
	cat    bool          // gives back its stdin, and ends with it
	ends   bool          // at once, with code
	sleep  time.Duration // else after this
	code   int
	onTERM int // code to exit with; -1: it does not heed it
	log    string
}

// parse understands a command, or fails as a runtime does.
func parse(args []string) (script, error) {
	s := script{onTERM: -1}
	command := path.Base(args[0])
	switch {
	case strings.HasPrefix(args[0], "/etc"):
		return s, &container.StartError{Code: 126, Err: errs.New(errs.Invalid, "exec %s: permission denied", args[0])}
	case command == "true":
		s.ends = true
	case command == "false":
		s.ends, s.code = true, 1
	case command == "echo":
		s.ends, s.output = true, strings.Join(args[1:], " ")+"\n"
	case command == "cat":
		s.cat = true
	case command == "sleep" && len(args) == 2:
		seconds, err := strconv.ParseFloat(args[1], 64)
		if err != nil {
			return s, err
		}
		s.sleep = time.Duration(seconds * float64(time.Second))
	case command == "sh" && len(args) == 3:
		return s, s.shell(args[2])
	default:
		return s, &container.StartError{Code: 127, Err: errs.New(errs.Invalid, "exec %s: no such file or directory", args[0])}
	}
	return s, nil
}

func (s *script) shell(line string) error {
	if code, ok := strings.CutPrefix(line, "exit "); ok {
		s.ends = true
		_, err := fmt.Sscan(code, &s.code)
		return err
	}
	if code, ok := strings.CutPrefix(line, "trap 'exit "); ok {
		s.sleep = 1000 * time.Hour
		_, err := fmt.Sscanf(code, "%d' TERM", &s.onTERM)
		return err
	}
	return fmt.Errorf("a fake shell does not know %q", line)
}

// openStdin gives the process a stdin. Only cat reads it.
func (p *process) openStdin() {
	in, out := io.Pipe()
	p.in, p.Stdin = in, out
	p.CloseStdin = func(context.Context) error { return out.Close() }
}

// openOutput gives an exec its output.
func (p *process) openOutput() {
	p.Stdout = io.NopCloser(strings.NewReader(p.script.output))
	p.Stderr = io.NopCloser(strings.NewReader(""))
	if p.script.cat {
		in, out := io.Pipe()
		p.Stdout, p.out = in, out
	}
}

// copyInput is what cat does.
func (r *Runtime) copyInput(p *process) {
	if p.in != nil {
		to := io.Writer(logWriter{p})
		if p.out != nil {
			to = p.out
		}
		_, _ = io.Copy(to, p.in) // who reads no more ends it
	}
	if p.out != nil {
		p.out.Close()
	}
	r.End(p.ID, 0)
}

type logWriter struct{ p *process }

func (w logWriter) Write(text []byte) (int, error) {
	w.p.write(string(text))
	return len(text), nil
}

// begin lets a process run.
func (r *Runtime) begin(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.started, p.Pid, p.begun = true, max(p.Pid, p.later), time.Now().Add(r.Slow)
	p.write(p.script.output)
	switch {
	case p.script.cat:
		r.told.Go(func() { r.copyInput(p) })
	case p.script.ends:
		r.told.Go(func() { r.End(p.ID, p.script.code) })
	case p.script.sleep > 0:
		p.timer = time.AfterFunc(p.script.sleep, func() { r.End(p.ID, 0) })
	}
}

// write puts output into the container's log.
func (p *process) write(text string) {
	if streams := p.streams(); streams != nil {
		appendTo(streams.Stdout, text)
		return
	}
	if p.script.log == "" || text == "" {
		return
	}
	f, err := os.OpenFile(p.script.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return
	}
	defer f.Close()
	for line := range strings.Lines(text) {
		fmt.Fprintf(f, "%s stdout F %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"), strings.TrimSuffix(line, "\n"))
	}
}

// streams are those that a client named, or nil.
func (p *process) streams() *container.Streams {
	if p.launch.Streams != nil {
		return p.launch.Streams
	}
	return p.exec.Streams
}

// appendTo writes to a file; what else a stream can be loses the text.
func appendTo(uri, text string) {
	name, isFile := strings.CutPrefix(uri, "file://")
	if !isFile || text == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(text)
}

// End ends a process, as a test may want it, with the given code. One that
// has ended or is not there stays as it is.
func (r *Runtime) End(id string, code int) {
	r.end(id, func(x *container.Exit) { x.Code, x.Known = code, true })
}

// Lose ends a process so that nobody can say how.
func (r *Runtime) Lose(id string) { r.end(id, func(*container.Exit) {}) }

func (r *Runtime) end(id string, how func(*container.Exit)) {
	r.mu.Lock()
	p := r.processes[id]
	if p == nil || p.exit != nil {
		r.mu.Unlock()
		return
	}
	x := container.Exit{ID: id, Pid: p.Pid, At: time.Now().UTC().Round(0)}
	how(&x)
	p.exit = &x
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.in != nil {
		p.in.Close()
	}
	var others []string
	if p.owner == id { // the end of the first process ends all
		for key, other := range r.processes {
			if other.owner == id && key != id {
				others = append(others, key)
			}
		}
	}
	tell := r.Exited
	r.mu.Unlock()
	for _, key := range others {
		r.End(key, 128+int(syscall.SIGKILL))
	}
	if tell != nil {
		tell(x)
	}
}

// Begun says whether a container's process is what it is to be.
func (r *Runtime) Begun(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.processes[id]
	return p == nil || !time.Now().Before(p.begun)
}

// signal does to the processes what a kernel would.
func (r *Runtime) signal(id string, sig syscall.Signal, all bool) error {
	r.mu.Lock()
	p := r.processes[id]
	r.mu.Unlock()
	switch {
	case sig == syscall.SIGKILL:
		r.told.Go(func() { r.End(id, 128+int(sig)) })
	case sig == syscall.SIGTERM && p.script.onTERM >= 0 && r.Begun(id):
		r.told.Go(func() { r.End(id, p.script.onTERM) })
	}
	if all {
		for _, key := range r.execs(id) {
			r.told.Go(func() { r.End(key, 128+int(sig)) })
		}
	}
	return nil
}

func (r *Runtime) execs(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for key, p := range r.processes {
		if p.owner == id && key != id {
			ids = append(ids, key)
		}
	}
	return ids
}

// Owner is the Runtime in its part as the owner of its processes, which
// remembers ends until it is told to forget.
type Owner struct{ r *Runtime }

// Owner returns it.
func (r *Runtime) Owner() Owner { return Owner{r} }

// Forget drops an ended process. errs.Conflict: it runs.
func (o Owner) Forget(ctx context.Context, id string) error {
	if err := o.r.fail(ctx, "forget", id); err != nil {
		return err
	}
	o.r.mu.Lock()
	defer o.r.mu.Unlock()
	p := o.r.processes[id]
	if p == nil {
		return nil
	}
	if p.exit == nil {
		return errs.New(errs.Conflict, "process %s runs", id)
	}
	delete(o.r.processes, id)
	return nil
}

// ReopenLog does nothing but know whether there is such a process.
func (o Owner) ReopenLog(_ context.Context, id string) error {
	o.r.mu.Lock()
	defer o.r.mu.Unlock()
	if o.r.processes[id] == nil {
		return errs.New(errs.NotFound, "there is no process %s", id)
	}
	return nil
}

// Signal sends sig to one process.
func (o Owner) Signal(id string, sig syscall.Signal) error {
	o.r.mu.Lock()
	p := o.r.processes[id]
	gone := p == nil || p.exit != nil
	o.r.mu.Unlock()
	if gone {
		return errs.New(errs.NotFound, "there is no process %s", id)
	}
	return o.r.signal(id, sig, false)
}

// SignalGroup implements container.Processes: fake processes start no others.
func (o Owner) SignalGroup(id string, sig syscall.Signal) error { return o.Signal(id, sig) }

// Survivors is what an owner tells a node that comes back.
func (r *Runtime) Survivors() []container.Survivor {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []container.Survivor
	for _, p := range r.processes {
		list = append(list, container.Survivor{Process: &p.Process, Exit: p.exit})
	}
	slices.SortFunc(list, func(a, b container.Survivor) int { return strings.Compare(a.Process.ID, b.Process.ID) })
	return list
}

// Reset makes it as after a reboot: nothing is there, and nobody is told.
func (r *Runtime) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.processes {
		if p.timer != nil {
			p.timer.Stop()
		}
		if p.in != nil {
			p.in.Close()
		}
	}
	clear(r.processes)
}

// Wait waits until all ends that were on their way have been told.
func (r *Runtime) Wait() { r.told.Wait() }
