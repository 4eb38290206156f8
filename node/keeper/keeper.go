package keeper

import (
	"context"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// Output says where a process's standard output and error go.
type Output uint8

// The outputs.
const (
	ToLog   Output = iota // the keeper writes them to Log, line by line
	Hold                  // nobody reads in the keeper; node reads Process.Stdout and Stderr (exec)
	Discard               // /dev/null
)

// Log is the log file of one process (see node/logfile for its format).
type Log struct {
	Path     string
	MaxSize  int64 // bytes before the file is rotated; 0: never
	MaxFiles int   // how many files are kept, the current one included; 0 or 1: just that
}

// Launch is one process to be started by an OCI runtime.
type Launch struct {
	ID string // of the container or exec; unique among the keeper's processes

	// Argv is the runtime's complete command line, with --pid-file PidFile,
	// with --console-socket ConsoleSocket for a terminal, and with
	// --log RuntimeLog: a detached runtime shares fd 2 with the container,
	// so its own complaints are best kept out of it. It must detach.
	Argv []string
	Env  []string
	Dir  string

	PidFile       string // written by the runtime, read by the keeper
	ConsoleSocket string // "": no terminal. The keeper listens there while the runtime runs; at most 107 bytes
	RuntimeLog    string // where Argv sends the runtime's own messages; read only to explain a failure

	Stdin      bool // false: /dev/null
	Output     Output
	Log        Log
	Rows, Cols uint16 // the terminal's first size; 0: the kernel's default
}

// Process is a started process. The files are the node's own duplicates,
// nil where there is none; Hold gives Stdout and Stderr, Stdin gives Stdin,
// a terminal gives Console. They live until Forget.
type Process struct {
	ID      string
	Pid     int
	Pidfd   *os.File
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
	Console *os.File
	Exit    *Exit // nil while it runs
}

// Exit is how a process ended.
type Exit struct {
	ID    string
	Pid   int
	Code  int  // 128+n when signal n ended it
	Known bool // false: it is gone, and nobody can say how
	At    time.Time
}

// LaunchError is a runtime that failed. It says what the runtime said.
type LaunchError struct {
	Argv0 string
	Code  int    // of the runtime command, 128+n for a signal; -1 if it could not be run
	Text  string // from RuntimeLog, or else from its standard error
}

// Config is what Open needs.
type Config struct {
	Socket  string     // the keeper's unix socket; its state files lie next to it
	PidFile string     // written by the keeper
	Command []string   // starts a keeper that serves Socket and PidFile
	Exited  func(Exit) // called once for every exit, in order, from Run; also for those that happened while no node ran
	Log     *slog.Logger
}

// Keeper is the node's hold on the keeper process.
type Keeper struct{}

// Open finds the running keeper, or starts one, and takes over duplicates
// of all its descriptors.
func Open(ctx context.Context, c Config) (*Keeper, error) { return nil, errs.Unsupported }

// Run reads exits and calls Config.Exited, and replaces a keeper that died:
// the new one gets every descriptor back. It returns when ctx is done; the
// keeper and its processes stay.
func (k *Keeper) Run(ctx context.Context) error { return errs.Unsupported }

// Close drops the connection and the node's duplicates. The keeper stays.
func (k *Keeper) Close() error { return errs.Unsupported }

// Launch runs the runtime command to its end and adopts the process it
// leaves behind. A failing runtime is a *LaunchError.
func (k *Keeper) Launch(ctx context.Context, l Launch) (*Process, error) {
	return nil, errs.Unsupported
}

// Processes returns every process that was not forgotten.
func (k *Keeper) Processes() []*Process { return nil }

// Process returns one process.
func (k *Keeper) Process(id string) (*Process, bool) { return nil, false }

// CloseStdin closes the write end in the keeper and in the node.
func (k *Keeper) CloseStdin(ctx context.Context, id string) error { return errs.Unsupported }

// Forget drops an ended process and its descriptors, and one that still
// runs if force.. errs.Conflict while it runs. An unknown id is no error.
func (k *Keeper) Forget(ctx context.Context, id string) error { return errs.Unsupported }

// ReopenLog makes the keeper open the log file anew by its path.
func (k *Keeper) ReopenLog(ctx context.Context, id string) error { return errs.Unsupported }

// Signal sends sig by pidfd: never to a stranger with a recycled pid.
// errs.NotFound when the process is unknown or has ended.
func (k *Keeper) Signal(id string, sig unix.Signal) error { return errs.Unsupported }

// Upgrade makes the keeper execute command[0] of Config.Command anew, in
// place: same pid, same children, same descriptors.
func (k *Keeper) Upgrade(ctx context.Context) error { return errs.Unsupported }

// Shutdown ends the keeper. errs.Conflict while processes run, unless force.
func (k *Keeper) Shutdown(ctx context.Context, force bool) error { return errs.Unsupported }

// Pid is the keeper's process id, 0 while there is none.
func (k *Keeper) Pid() int { return 0 }

func (e *LaunchError) Error() string { return e.Text }
