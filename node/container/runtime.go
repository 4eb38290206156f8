package container

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/node/snapshot"
	"berth/spec"
)

// Runtime runs containers from OCI bundles. It keeps no state of its own that
// matters: what it knows about a container it can be asked again by another
// process. Drivers pass containertest.Suite.
//
// Every id is chosen by the caller. A method given an id that the runtime does
// not know fails with errs.NotFound, but for Delete, which has then nothing to
// do. When Run, Create or Exec fail because the process could not be started,
// the error holds a *StartError. How a process ended is not told here but by
// whoever owns it (the keeper), as an exit with the id of the container or of
// the exec.
//
// A runtime bounds the time that each of its calls may take, for everything else
// that is done with the container waits meanwhile: errs.Timeout.
type Runtime interface {
	// Name is what --runtime takes.
	Name() string
	// Version asks the runtime what it is.
	Version(ctx context.Context) (string, error)
	// Run makes a container and starts its process, in one command. When it
	// fails nothing of the container is left.
	Run(ctx context.Context, l Launch) (*Process, error)
	// Create makes a container whose process waits for Start.
	Create(ctx context.Context, l Launch) (*Process, error)
	// Start lets the process of a created container go.
	Start(ctx context.Context, id string) error
	// Exec runs a further process in a running container.
	Exec(ctx context.Context, l ExecLaunch) (*Process, error)
	// Signal sends sig to the container's first process, or to all of them.
	// A container that has ended is errs.NotFound.
	Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error
	// Pause freezes every process of the container.
	Pause(ctx context.Context, id string) error
	// Resume thaws what Pause froze.
	Resume(ctx context.Context, id string) error
	// Update sets limits of a running container; fields that are nil stay.
	Update(ctx context.Context, id string, r *specs.LinuxResources) error
	// Delete ends what still runs, and removes the container's cgroups and the
	// runtime's record of it. A container that is not there is no error.
	Delete(ctx context.Context, id string) error
	// Pids are the processes of the container, as the host numbers them.
	Pids(ctx context.Context, id string) ([]int, error)
}

// Launch is what a Runtime needs to make a container.
type Launch struct {
	ID     string
	Bundle string // folder of config.json
	TTY    bool   // the process gets a terminal, Process.Console
	Stdin  bool   // the process gets a stdin that we write to; else it reads nothing
	Log    LogFile
	Size   spec.Size // of the terminal

	// Streams, where they are given, take the place of Stdin and Log, and of
	// the files of Process.
	Streams *Streams
	// Name and Namespace are what a client calls the container; a logger is
	// told them. Without a Name the ID stands for it.
	Name, Namespace string
	// Rootfs are the mounts that make <Bundle>/rootfs, for runtimes that mount
	// it themselves (Mounter); for all others it is mounted already.
	Rootfs []snapshot.Mount
	// Options are a client's for this runtime. What cannot be honoured is
	// errs.Invalid or errs.Unsupported, never overlooked.
	Options *spec.Opaque
	// Restore is the folder of a checkpoint that Create goes on from; "" for
	// none. The process runs when Start returns, as always.
	Restore string
}

// Streams are the places that a client named for a process's standard streams:
// the path of a FIFO, or a URI:
//
//	fifo:///path               the same
//	file:///path               appended to; created with mode 0640, parents too
//	binary:///path?key=value   a logger: a program that reads what the process
//	                           writes, from descriptors 3 (stdout) and 4
//	                           (stderr); it closes 5 when it is ready
//
// "" is /dev/null. With a terminal Stderr is not used. A FIFO that is not there
// is errs.NotFound, a URI that nobody understands errs.Invalid.
//
// The process gets FIFOs and files as its own descriptors. Until it has ended
// both ends of its FIFOs are held open, so that a client may come and go; then
// the client sees their end.
type Streams struct {
	Stdin  string `json:"stdin,omitempty"`
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

// Mounter is a Runtime that mounts Launch.Rootfs itself.
type Mounter interface {
	MountsRootfs() bool
}

// Checkpointer is a Runtime that can write a running container to disk. Where
// this machine cannot it is errs.Unsupported, saying why.
type Checkpointer interface {
	Checkpoint(ctx context.Context, id string, c Checkpoint) error
}

// Checkpoint says where a container's image goes and what it may hold.
type Checkpoint struct {
	Image  string // folder of the image; made if it is not there
	Work   string // folder of CRIU's own logs; "" is one that is thrown away
	Parent string // image of an earlier checkpoint, relative to Image
	Exit   bool   // the container ends; else it goes on

	OpenTCP, ExternalUnixSockets, Terminal, FileLocks bool
	EmptyNamespaces                                   []string
}

// Resizer is a Runtime that holds the terminals itself: Process.Console is nil.
// exec "" means the container's first process.
type Resizer interface {
	Resize(ctx context.Context, id, exec string, size spec.Size) error
}

// Reporter is a Runtime that measures its containers itself: a message of
// metrics in the protocol's own type.
type Reporter interface {
	Report(ctx context.Context, id string) (*spec.Opaque, error)
}

// LogFile is where a container's output goes, in the form of node/logfile.
type LogFile struct {
	Path     string
	MaxSize  int64 // bytes of one file before it is rotated
	MaxFiles int   // kept, the current one included
}

// ExecLaunch is what a Runtime needs to run a process in a container.
type ExecLaunch struct {
	ID        string // of the exec; its exit comes with it
	Container string
	Process   *specs.Process // Terminal says whether it gets one
	Stdin     bool
	Detach    bool // output is thrown away
	Size      spec.Size

	// Streams, Name (of the exec) and Namespace are as in Launch.
	Streams         *Streams
	Name, Namespace string
}

// Process is a process that a Runtime started. The files are the caller's to
// close; closing them ends nothing.
type Process struct {
	ID      string
	Pid     int
	Stdin   io.WriteCloser // nil without Stdin, and with a terminal
	Stdout  io.ReadCloser  // of an exec that is not detached and has no terminal
	Stderr  io.ReadCloser
	Console *os.File // the terminal's master, where one was asked for
	// CloseStdin lets the process see the end of its stdin, also where others
	// hold the same pipe open. Of a FIFO among Streams it lets go of the node's
	// own hold: the end comes when the client has closed it too.
	CloseStdin func(ctx context.Context) error
	// CloseOutput lets the process see at its next write that nobody reads what
	// it says, also where others hold the same pipes open. nil where there are
	// none.
	CloseOutput func(ctx context.Context) error
}

// Close lets go of the files.
func (p *Process) Close() error {
	var failed error
	for _, f := range []io.Closer{p.Stdin, p.Stdout, p.Stderr} {
		if f != nil {
			failed = errors.Join(failed, ignoreClosed(f.Close()))
		}
	}
	if p.Console != nil {
		failed = errors.Join(failed, ignoreClosed(p.Console.Close()))
	}
	return failed
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// StartError says that a process could not be started, and the exit code that
// people know for it: 127 for a command that is not there, 126 for one that
// cannot be run, 128 for everything else.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }

func (e *StartError) Unwrap() error { return e.Err }

// startCode is the exit code that err stands for.
func startCode(err error) int {
	if start, ok := errors.AsType[*StartError](err); ok && start.Code != 0 {
		return start.Code
	}
	return 128
}
