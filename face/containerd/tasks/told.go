package tasks

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/spec"
)

// Told tells containerd's clients what a node says of its containers.
type Told struct {
	Events interface {
		PublishAt(ctx context.Context, at time.Time, namespace, topic string, event proto.Message)
	}
}

// Tell translates one event. It waits for nothing, so that it can be called by
// whoever publishes.
func (t *Told) Tell(ctx context.Context, e spec.Event) {
	if e.Type != "container" {
		return
	}
	a := e.Attributes
	namespace, id := a["namespace"], a["container"]
	if namespace == "" {
		namespace = spec.DefaultNamespace
	}
	if id == "" {
		id = e.ID
	}
	action, _, _ := strings.Cut(e.Action, ":") // exec_create: the command
	if topic, message := translate(action, id, a); message != nil {
		t.Events.PublishAt(ctx, e.Time, namespace, topic, message)
	}
	// A container of the node's own is made and let go in one.
	if action == "start" && a["given"] != "true" {
		t.Events.PublishAt(ctx, e.Time, namespace, "/tasks/start", &events.TaskStart{ContainerID: id, Pid: number(a["pid"])})
	}
}

// translate gives an event's topic and message; nil for what the protocol has
// no word for, or what a service has told itself.
func translate(action, id string, a map[string]string) (string, proto.Message) {
	given := a["given"] == "true"
	switch action {
	case "create":
		if given {
			return "", nil // with all that it is made of, by the service that made it
		}
		return "/containers/create", &events.ContainerCreate{
			ID: id, Image: a["image"], Runtime: &events.ContainerCreate_Runtime{Name: usualRuntime},
		}
	case "update", "rename":
		if given {
			return "", nil
		}
		return "/containers/update", &events.ContainerUpdate{ID: id, Image: a["image"]}
	case "destroy":
		return "/containers/delete", &events.ContainerDelete{ID: id}
	case "start":
		if !given {
			return "/tasks/create", taskCreate(id, a)
		}
		return "/tasks/start", &events.TaskStart{ContainerID: id, Pid: number(a["pid"])}
	}
	return translateTask(action, id, a)
}

// usualRuntime is what clients call the runtime that runs most containers.
const usualRuntime = "io.containerd.runc.v2"

func translateTask(action, id string, a map[string]string) (string, proto.Message) {
	switch action {
	case "task_create":
		return "/tasks/create", taskCreate(id, a)
	case "die":
		return "/tasks/exit", &events.TaskExit{
			ContainerID: id, ID: id, Pid: number(a["pid"]), ExitStatus: number(a["exitCode"]), ExitedAt: exitedAt(a),
		}
	case "task_delete":
		return "/tasks/delete", &events.TaskDelete{
			ContainerID: id, Pid: number(a["pid"]), ExitStatus: number(a["exitCode"]), ExitedAt: exitedAt(a),
		}
	case "exec_create":
		return "/tasks/exec-added", &events.TaskExecAdded{ContainerID: id, ExecID: a["execID"]}
	case "exec_start":
		return "/tasks/exec-started", &events.TaskExecStarted{ContainerID: id, ExecID: a["execID"], Pid: number(a["pid"])}
	case "exec_die":
		return "/tasks/exit", &events.TaskExit{
			ContainerID: id, ID: a["execID"], Pid: number(a["pid"]), ExitStatus: number(a["exitCode"]), ExitedAt: exitedAt(a),
		}
	case "pause":
		return "/tasks/paused", &events.TaskPaused{ContainerID: id}
	case "unpause":
		return "/tasks/resumed", &events.TaskResumed{ContainerID: id}
	case "oom":
		return "/tasks/oom", &events.TaskOOM{ContainerID: id}
	case "checkpoint":
		return "/tasks/checkpointed", &events.TaskCheckpointed{ContainerID: id, Checkpoint: a["checkpoint"]}
	}
	return "", nil
}

func taskCreate(id string, a map[string]string) *events.TaskCreate {
	return &events.TaskCreate{
		ContainerID: id, Bundle: a["bundle"], Pid: number(a["pid"]), Checkpoint: a["checkpoint"],
		IO: &events.TaskIO{Stdin: a["stdin"], Stdout: a["stdout"], Stderr: a["stderr"], Terminal: a["terminal"] == "true"},
	}
}

func number(text string) uint32 {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func exitedAt(a map[string]string) *timestamppb.Timestamp {
	at, err := time.Parse(time.RFC3339Nano, a["exitedAt"])
	if err != nil {
		return timestamppb.Now() // when it is told of
	}
	return timestamppb.New(at)
}
