package container

import (
	"context"
	"io"
	"time"

	"berth/base/errs"
	"berth/node/logfile"
	"berth/spec"
)

// Set is the containers of one node.
type Set struct{}

var errOutline = errs.New(errs.Unsupported, "not yet")

// Create makes a container from an image that is here. errs.NotFound: no such
// image; errs.Exists: the name is in use; errs.Invalid: the config is.
func (s *Set) Create(ctx context.Context, config spec.ContainerConfig) (spec.Container, error) {
	return spec.Container{}, errOutline
}

// Start runs the container's process. A running container is no error. Where
// the process cannot be started the error holds a *StartError with the exit
// code for it.
func (s *Set) Start(ctx context.Context, ref string) error { return errOutline }

// Stop sends signal (the container's own when ""), and kills after timeout
// seconds (the container's own when nil, never when negative). A container
// that does not run is no error.
func (s *Set) Stop(ctx context.Context, ref string, timeout *int, signal string) error {
	return errOutline
}

// Kill sends signal (KILL when "") to the container's first process.
// errs.Conflict: it does not run.
func (s *Set) Kill(ctx context.Context, ref, signal string) error { return errOutline }

// Restart stops the container as Stop does, and starts it.
func (s *Set) Restart(ctx context.Context, ref string, timeout *int, signal string) error {
	return errOutline
}

// Pause freezes a running container. errs.Conflict: not running, or paused.
func (s *Set) Pause(ctx context.Context, ref string) error { return errOutline }

// Unpause thaws a paused container. errs.Conflict: it is not.
func (s *Set) Unpause(ctx context.Context, ref string) error { return errOutline }

// Remove takes a container away, with its anonymous volumes if volumes is
// set. errs.Conflict: it runs, and force is not set.
func (s *Set) Remove(ctx context.Context, ref string, force, volumes bool) error { return errOutline }

// Rename gives the container another name. errs.Exists: it is in use.
func (s *Set) Rename(ctx context.Context, ref, name string) error { return errOutline }

// Update changes limits and restart policy, of a running container too.
func (s *Set) Update(ctx context.Context, ref string, update spec.ContainerUpdate) (spec.Container, error) {
	return spec.Container{}, errOutline
}

// The conditions of Wait.
const (
	NotRunning = "not-running" // at once if it does not run
	NextExit   = "next-exit"
	Removed    = "removed"
)

// Wait waits until the container fits condition (NotRunning when "") and tells
// how it ended last. The exits of containers that were removed stay known for
// some minutes, by their id.
func (s *Set) Wait(ctx context.Context, ref, condition string) (spec.Exit, error) {
	return spec.Exit{}, errOutline
}

// Get returns one container. errs.NotFound, or errs.Conflict where ref fits
// several.
func (s *Set) Get(ctx context.Context, ref string) (spec.Container, error) {
	return spec.Container{}, errOutline
}

// Sizes counts the disk that the container takes.
func (s *Set) Sizes(ctx context.Context, ref string) (spec.ContainerSizes, error) {
	return spec.ContainerSizes{}, errOutline
}

// List returns containers, newest first: the running ones, or all. Filters:
// id name label status ancestor exited before since network volume health
// publish expose is-task.
func (s *Set) List(ctx context.Context, all bool, filter spec.Filter) ([]spec.Container, error) {
	return nil, errOutline
}

// Top lists the processes of a running container; psArgs are those of ps(1).
func (s *Set) Top(ctx context.Context, ref string, psArgs []string) (spec.ProcessTable, error) {
	return spec.ProcessTable{}, errOutline
}

// Stats tells what containers use now; all running ones where refs is empty.
func (s *Set) Stats(ctx context.Context, refs []string) ([]spec.Stats, error) {
	return nil, errOutline
}

// Prune removes the containers that do not run. Filters: label label! until.
func (s *Set) Prune(ctx context.Context, filter spec.Filter) (spec.Pruned, error) {
	return spec.Pruned{}, errOutline
}

// Logs gives the container's output to fn. With q.Follow it ends when the
// container has ended and all is read; q.Ended is set by Logs.
func (s *Set) Logs(ctx context.Context, ref string, q logfile.Query, fn func(logfile.Line) error) error {
	return errOutline
}

// LogPosition is where the log ends now: what is read from there is new.
func (s *Set) LogPosition(ctx context.Context, ref string) (logfile.Position, error) {
	return "", errOutline
}

// Stdin writes to the container's stdin or terminal. Close ends this writer;
// for a container with StdinOnce it also ends the process's stdin, once its
// last writer is closed. errs.Conflict: it does not run, or was made without OpenStdin.
func (s *Set) Stdin(ctx context.Context, ref string) (io.WriteCloser, error) { return nil, errOutline }

// Resize sets the size of the container's terminal. errs.Conflict: it has none.
func (s *Set) Resize(ctx context.Context, ref string, size spec.Size) error { return errOutline }

// ExecSession is the node's end of a process made by exec.
type ExecSession struct {
	ID         string
	Stdin      io.WriteCloser // nil where it was not asked for; Close ends the process's stdin
	Stdout     io.Reader      // the terminal, where there is one; nil when detached
	Stderr     io.Reader      // nil with a terminal, and when detached
	CloseStdin func(ctx context.Context) error
	Resize     func(size spec.Size) error
	// Close lets go of the descriptors; it does not end the process.
	Close func() error
}

// CreateExec prepares a further process in a running container.
// errs.Conflict: it does not run, or is paused.
func (s *Set) CreateExec(ctx context.Context, ref string, config spec.ExecConfig) (spec.Exec, error) {
	return spec.Exec{}, errOutline
}

// StartExec runs it, once. The error holds a *StartError where the command
// cannot be started. The caller closes the session.
func (s *Set) StartExec(ctx context.Context, id string) (*ExecSession, error) {
	return nil, errOutline
}

// WaitExec waits for the end of a started exec.
func (s *Set) WaitExec(ctx context.Context, id string) (spec.Exec, error) {
	return spec.Exec{}, errOutline
}

// ResizeExec sets the size of an exec's terminal.
func (s *Set) ResizeExec(ctx context.Context, id string, size spec.Size) error { return errOutline }

// GetExec returns one exec, for some minutes after its end too.
func (s *Set) GetExec(ctx context.Context, id string) (spec.Exec, error) {
	return spec.Exec{}, errOutline
}

// Changes lists the paths that differ from the image.
func (s *Set) Changes(ctx context.Context, ref string) ([]spec.Change, error) {
	return nil, errOutline
}

// Export writes the container's root file system as a tar.
func (s *Set) Export(ctx context.Context, ref string, w io.Writer) error { return errOutline }

// StatPath describes a path in the container, a link itself and not its target.
func (s *Set) StatPath(ctx context.Context, ref, path string) (spec.PathStat, error) {
	return spec.PathStat{}, errOutline
}

// CopyFrom writes path, a file or a whole folder, as a tar to w.
func (s *Set) CopyFrom(ctx context.Context, ref, path string, w io.Writer) (spec.PathStat, error) {
	return spec.PathStat{}, errOutline
}

// CopyTo unpacks a tar into path, a folder in the container. Unless overwrite
// is set, a folder is never replaced by a file nor a file by a folder.
func (s *Set) CopyTo(ctx context.Context, ref, path string, archive io.Reader, overwrite bool) error {
	return errOutline
}

// Commit makes an image of the container as it is.
func (s *Set) Commit(ctx context.Context, ref string, req spec.CommitRequest) (spec.Image, error) {
	return spec.Image{}, errOutline
}

// Connect joins the container to a further network.
func (s *Set) Connect(ctx context.Context, ref, network string, config spec.EndpointConfig) error {
	return errOutline
}

// Disconnect takes the container off a network.
func (s *Set) Disconnect(ctx context.Context, ref, network string) error { return errOutline }

// Exited is told by the owner of the processes that the one of container or
// exec id has ended.
func (s *Set) Exited(id string, code int, known bool, at time.Time) {}
