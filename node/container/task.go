package container

import (
	"time"

	"berth/node/snapshot"
	"berth/spec"
)

// TaskRequest is what a client says of a task when it makes one.
type TaskRequest struct {
	Rootfs   []snapshot.Mount `json:"rootfs,omitempty"` // that make <bundle>/rootfs; none: the spec says where the root is
	Streams  Streams          `json:"streams"`
	Terminal bool             `json:"terminal,omitempty"`
	Options  *spec.Opaque     `json:"options,omitempty"`
	Runtime  string           `json:"runtime,omitempty"` // "" is the container's own
	Restore  string           `json:"restore,omitempty"` // folder of a checkpoint to go on from
}

// TaskStatus is how far a task, or an exec in it, has come.
type TaskStatus string

// The statuses of tasks.
const (
	TaskCreated TaskStatus = "created"
	TaskRunning TaskStatus = "running"
	TaskStopped TaskStatus = "stopped"
	TaskPaused  TaskStatus = "paused"
	TaskPausing TaskStatus = "pausing"
)

// TaskState is a task, or an exec in it, as it is now.
type TaskState struct {
	Namespace string
	Container string
	Exec      string // "" for the task itself
	Bundle    string
	Pid       int // stays when it has ended
	Status    TaskStatus
	Streams   Streams
	Terminal  bool
	Exit      TaskExit // once Status is TaskStopped
}

// TaskExit is how a task or an exec ended.
type TaskExit struct {
	Pid  int       `json:"pid"`
	Code uint32    `json:"code"` // 255 where nobody can say
	At   time.Time `json:"at"`
}

// TaskPid is a process of a task, and the exec that it is the first of.
type TaskPid struct {
	Pid  int
	Exec string
}

// ExecRequest is a further process in a task.
type ExecRequest struct {
	ID       string // unique in the task
	Streams  Streams
	Terminal bool
	Process  []byte // of the OCI runtime spec, as JSON
}
