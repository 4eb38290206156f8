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
// What a client named for a process's streams (Streams) does not pass through
// here but for terminals and files, and those by splice, which leaves every
// byte either where it was or where it goes; FIFOs that the keeper keeps open
// for clients are among the descriptors that node has twice, and closes when
// the keeper says that it has.
//
// Descriptors that are no process's but have to outlive node, such as the
// listeners of seccomp, are held in a store, by names (Hold, Held, Drop); node
// has those twice too. So are the sockets that node listens on, so that clients
// wait for the next one instead of being refused, but not for long (HoldSocket).
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
	Given                 // Launch.Streams, whatever Output says: the process has them itself
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
	Streams    *Streams // take the place of Stdin, Output and Log
	Rows, Cols uint16   // the terminal's first size; 0: the kernel's default
}

// Streams are the places that a client named for the standard streams of one
// process. Each is "" for /dev/null, the path of something that is there, or a
// URI:
//
//	fifo:///path               a FIFO that is there
//	file:///path               appended to; made with mode 0640 if it is not there
//	binary:///path?key=value   a logger: a program run with key and value as
//	                           its arguments, which reads output from its
//	                           descriptors 3 and 4. It closes 5, or writes to
//	                           it, when it is ready; the process starts then
//	binary-v2:///path?…        one that writes to 5
//
// With a terminal Stderr is not used; a file or a logger named for Stdout takes
// both where Stderr is empty.
//
// A FIFO, and anything that is no regular file, is the process's own
// descriptor: nothing is copied. The keeper opens its other end too, so that a
// client may come late, go, and come back, without the process hearing of it;
// when the process has ended the keeper lets go, and clients see the end.
// What nobody has read by then stays readable until Forget. A client that does
// not read stops the process when the FIFO is full, and nothing else. Files
// are written by the keeper from a pipe, because a process that opens its
// /dev/stdout anew would empty them. A terminal is copied to and from the
// FIFOs.
//
// A process whose logger dies is told so by its next write, as with any pipe;
// what a terminal says is then lost. A logger belongs to its process: it outlives node and keeper, sees the end of
// its input when the process and its children are gone, and is ended some time
// after Forget if it has not.
type Streams struct {
	Stdin, Stdout, Stderr string
	Name, Namespace       string // CONTAINER_ID and CONTAINER_NAMESPACE of a logger
	UID, GID              int    // owner of FIFOs and pipes; 0 leaves them
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
	Given   bool  // it was launched with Streams
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
