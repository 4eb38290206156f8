// Package keeper is the parent of every container: the keeper process
// (Serve), and node's hold on it (Keeper).
//
// The keeper starts OCI runtimes, adopts the processes they leave behind,
// writes their logs, and knows how they ended. It outlives node. Node has a
// duplicate of every descriptor of the keeper, so that either half may be
// killed at any instruction, and the other loses no byte of output:
//
//   - node dies: the keeper keeps everything, and the next node's Open gets
//     the list with all descriptors;
//   - the keeper dies: its children fall to init, node starts another keeper
//     and hands it the descriptors. The end of such processes is seen by
//     pidfd; how they ended is asked of the kernel (Linux 6.15 and newer tell
//     it when init has reaped them; before that, /proc tells until init has)
//     and is otherwise reported as not known.
//
// Node must therefore not be a subreaper. Where it is pid 1 it reaps what
// falls to it, by pidfd and only the keeper's former children.
//
// On disk, all of it worthless after a reboot: the socket, <socket>.notes
// (where in the logs the output belongs that is just being written), the pid
// file, which is also the lock, and beside it a .log of the keeper itself.
package keeper

import (
	"log/slog"
	"os"
	"time"
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
	Env  []string // complete; the keeper's own is not passed on
	Dir  string

	PidFile       string // written by the runtime, read by the keeper
	ConsoleSocket string // "": no terminal. The keeper listens there while the runtime runs; at most 107 bytes
	RuntimeLog    string // where Argv sends the runtime's own messages; read only to explain a failure

	Stdin      bool // false: /dev/null. A terminal is always its own stdin
	Output     Output
	Log        Log
	Rows, Cols uint16 // the terminal's first size; 0: the kernel's default
}

// Process is a started process. The files are node's own duplicates and nil
// where there is none: Stdin if it was asked for, Stdout and Stderr of Hold
// without a terminal, Console of a terminal. With ToLog only the keeper reads.
// They live until Forget, Stdin until CloseStdin.
type Process struct {
	ID      string
	Pid     int
	Pidfd   *os.File // nil if it ended before anybody could look
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
	Socket  string     // the keeper's unix socket
	PidFile string     // written by the keeper
	Command []string   // starts a keeper that serves Socket and PidFile
	Exited  func(Exit) // called for every exit, one after the other, by Run. For one that no earlier node has forgotten, too
	Log     *slog.Logger
}
