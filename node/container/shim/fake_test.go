package shim_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	types "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestMain lets the test's program be a shim too, whose manners its name says:
// containerd-shim-MANNERS-v1.
func TestMain(m *testing.M) {
	manners, isShim := strings.CutPrefix(filepath.Base(os.Args[0]), "containerd-shim-")
	if !isShim {
		os.Exit(m.Run())
	}
	f := &fake{manners: strings.TrimSuffix(manners, "-v1"), containers: map[string]*fakeContainer{}}
	if err := f.main(); err != nil {
		fmt.Fprintf(os.Stderr, "fake: %v", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// fake is a shim whose containers are plain processes that sleep.
type fake struct {
	manners string
	socket  string

	mu         sync.Mutex
	containers map[string]*fakeContainer
}

type fakeContainer struct {
	cmd   *exec.Cmd
	start io.Closer
	done  chan struct{}
	at    time.Time
}

func (f *fake) is(manners ...string) bool { return slices.Contains(manners, f.manners) }

func (f *fake) main() error {
	switch os.Args[len(os.Args)-1] {
	case "start":
		return f.introduce()
	case "delete":
		return f.cleanUp()
	case "-v":
		fmt.Println("fake:\n  Version:  v1.2.3")
		return nil
	}
	return f.serve()
}

func flagOf(name string) string {
	for i, arg := range os.Args {
		if arg == name {
			return os.Args[i+1]
		}
	}
	return ""
}

// introduce is the command start.
func (f *fake) introduce() error {
	var params bootstrap.BootstrapParams
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	dir, _ := os.Getwd()
	id := flagOf("-id")
	if err := proto.Unmarshal(in, &params); err != nil || params.GetInstanceID() != id || filepath.Base(dir) != id ||
		os.Getenv("TTRPC_ADDRESS") != params.GetContainerdTtrpcAddress() || os.Getenv("NAMESPACE") != flagOf("-namespace") {
		return fmt.Errorf("told %v in %s with %v: %w", &params, dir, os.Args, err)
	}
	switch f.manners {
	case "fails":
		return errors.New("no such device")
	case "silent":
		return nil
	case "floods":
		for {
			fmt.Println(strings.Repeat("x", 1000))
		}
	}
	name := sha256.Sum256([]byte(filepath.Join(params.GetContainerdGrpcAddress(), params.GetNamespace(), id)))
	f.socket = filepath.Join(params.GetSocketDir(), hex.EncodeToString(name[:])) // as is the custom
	if err := f.daemon(); err != nil {
		return err
	}
	address := "unix://" + f.socket
	switch f.manners {
	case "hangs":
		time.Sleep(time.Hour)
	case "garbles":
		junk := make([]byte, 300)
		_, _ = rand.Read(junk)
		_, _ = os.Stdout.Write(append([]byte{0xff}, junk...))
	case "absent":
		fmt.Print(address + ".not")
	case "future":
		fmt.Printf(`{"version":9,"address":%q,"protocol":"ttrpc"}`, address)
	case "grpc":
		fmt.Printf(`{"version":3,"address":%q,"protocol":"grpc"}`, address)
	case "plain":
		fmt.Print("warning: this is old\nand noisy\n" + address)
	case "json", "stays":
		fmt.Printf("loading {config}\n{\"version\":3,\"address\":%q,\"protocol\":\"ttrpc\"}\n", address)
	case "downgrades": // claims version 3, and is not
		fmt.Printf(`{"version":3,"address":%q,"protocol":"ttrpc"}`, address)
	default:
		out, err := proto.Marshal(&bootstrap.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"})
		if err != nil {
			return err
		}
		_, _ = os.Stdout.Write(out)
	}
	return nil
}

// daemon leaves the shim itself behind.
func (f *fake) daemon() error {
	if err := os.MkdirAll(filepath.Dir(f.socket), 0o700); err != nil {
		return err
	}
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		return err
	}
	file, err := listener.(*net.UnixListener).File()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "-socket", f.socket)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if f.is("holds") {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	return cmd.Start()
}

// cleanUp is the command delete.
func (f *fake) cleanUp() error {
	bundle := flagOf("-bundle")
	if f.is("unclean") {
		time.Sleep(time.Hour)
	}
	at, code := time.Now(), uint32(137)
	if f.is("notes") {
		at, code = time.Unix(1e9, 0), 3
	}
	if data, err := os.ReadFile(filepath.Join(bundle, "pid")); err == nil {
		pid, _ := strconv.Atoi(string(data))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = os.WriteFile(filepath.Join(bundle, "cleaned"), nil, 0o600)
	out, err := proto.Marshal(&taskapi.DeleteResponse{ExitStatus: code, ExitedAt: timestamppb.New(at)})
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return err
}

// serve is the shim itself.
func (f *fake) serve() error {
	f.socket = flagOf("-socket")
	syscall.CloseOnExec(3)
	listener, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	switch f.manners {
	case "mute", "babbles":
		for {
			conn, err := listener.Accept()
			if err != nil {
				return err
			}
			if f.is("babbles") {
				_, _ = io.CopyN(conn, rand.Reader, 1<<20)
			}
		}
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	service := "containerd.task.v3.Task"
	if f.is("plain", "downgrades") {
		service = "containerd.task.v2.Task"
	}
	server.RegisterService(service, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Connect":  method(f, "connect", f.connect),
		"Create":   method(f, "create", f.create),
		"Start":    method(f, "start", f.begin),
		"State":    method(f, "state", f.state),
		"Kill":     method(f, "kill", f.kill),
		"Wait":     method(f, "wait", f.wait),
		"Delete":   method(f, "delete", f.remove),
		"Shutdown": method(f, "shutdown", f.shutdown),
	}})
	return server.Serve(context.Background(), listener)
}

// method makes a handler, which hangs or dies where the manners say so:
// create-hangs, start-dies.
func method[In, Out any](f *fake, name string, do func(*In) (*Out, error)) ttrpc.Method {
	return func(_ context.Context, unmarshal func(any) error) (any, error) {
		in := new(In)
		if err := unmarshal(in); err != nil {
			return nil, err
		}
		switch f.manners {
		case name + "-hangs":
			select {}
		case name + "-dies":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case name + "-fails":
			return nil, errors.New("it did not work")
		}
		out, err := do(in)
		return out, errgrpc.ToGRPC(err)
	}
}

func (f *fake) connect(*taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	if f.is("lies") { // about who it is
		return &taskapi.ConnectResponse{ShimPid: 1}, nil
	}
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}, nil
}

func (f *fake) create(r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	var config struct {
		Process struct{ Args []string }
	}
	data, err := os.ReadFile(filepath.Join(r.GetBundle(), "config.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	c := &fakeContainer{done: make(chan struct{})}
	c.cmd = exec.Command("busybox", append([]string{"sh", "-c", `read x; exec busybox "$@"`, "sh"}, config.Process.Args...)...)
	if c.start, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	c.cmd.Dir = "/"
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait()
		c.at = time.Now()
		close(c.done)
	}()
	f.mu.Lock()
	f.containers[r.GetID()] = c
	f.mu.Unlock()
	err = os.WriteFile(filepath.Join(r.GetBundle(), "pid"), []byte(strconv.Itoa(c.cmd.Process.Pid)), 0o600)
	return &taskapi.CreateTaskResponse{Pid: uint32(c.cmd.Process.Pid)}, err
}

func (f *fake) find(id string) (*fakeContainer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return c, nil
	}
	return nil, errdefs.ErrNotFound
}

func (f *fake) begin(r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, err := f.find(r.GetID())
	if err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: uint32(c.cmd.Process.Pid)}, c.start.Close()
}

func (f *fake) state(r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, err := f.find(r.GetID())
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return &taskapi.StateResponse{Status: types.Status_STOPPED, ExitStatus: c.code(), ExitedAt: timestamppb.New(c.at)}, nil
	default:
		return &taskapi.StateResponse{Status: types.Status_RUNNING}, nil
	}
}

func (c *fakeContainer) code() uint32 {
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + uint32(status.Signal())
	}
	return uint32(status.ExitStatus())
}

func (f *fake) kill(r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, err := f.find(r.GetID())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.cmd.Process.Signal(syscall.Signal(r.GetSignal()))
}

func (f *fake) wait(r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	c, err := f.find(r.GetID())
	if err != nil {
		return nil, err
	}
	<-c.done
	return &taskapi.WaitResponse{ExitStatus: c.code(), ExitedAt: timestamppb.New(c.at)}, nil
}

func (f *fake) remove(r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, err := f.find(r.GetID())
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
	default:
		return nil, errdefs.ErrFailedPrecondition
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, r.GetID())
	return &taskapi.DeleteResponse{ExitStatus: c.code(), ExitedAt: timestamppb.New(c.at)}, nil
}

func (f *fake) shutdown(*taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.containers) == 0 && !f.is("stays") {
		_ = os.Remove(f.socket)
		go func() {
			time.Sleep(10 * time.Millisecond)
			os.Exit(0)
		}()
	}
	return &emptypb.Empty{}, nil
}
