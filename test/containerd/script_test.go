package containerd

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScript runs the transcripts, each on an engine of its own.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "script", UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			t := env.T().(testing.TB)
			e := newEngine(t)
			for _, line := range e.environment() {
				key, value, _ := strings.Cut(line, "=")
				env.Setenv(key, value)
			}
			env.Setenv("CONTAINERD_NAMESPACE", e.namespace())
			env.Setenv("NAMESPACE", e.namespace())
			env.Setenv("ARCHIVE", archive(t, env.WorkDir, "docker.io/library/busybox:1"))
			env.Values[engineKey{}] = e
			return nil
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "berth":
				return !peer, nil
			case "criu":
				_, err := exec.LookPath("criu")
				return err == nil, nil
			}
			return false, errors.New("unknown condition " + name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"codeof": codeOf, "eventually": eventually, "freeport": freePort, "variable": variable,
		},
	})
}

// engineKey finds a script's engine in its values.
type engineKey struct{}

// freePort puts the number of a port nobody listens on into a variable:
// freeport PORT.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport variable")
	}
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	ts.Check(err)
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// variable puts what the last command printed into a variable: variable ID.
func variable(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: variable name")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// eventually runs a command line of sh until it succeeds:
// eventually 'ctr tasks ls | grep STOPPED'.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: [!] eventually line")
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	line := strings.Join(args, " ")
	for {
		err := ts.Exec("sh", "-c", line)
		if (err == nil) != neg {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("%s: not within 20 s: %v", line, err)
		}
	}
}

// codeOf runs a command and wants an exit code of it: codeof 125 nerdctl run.
func codeOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: codeof code command [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
