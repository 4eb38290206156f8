// Package transcript has the commands that transcripts of command lines have
// besides those of testscript.
package transcript

import (
	"errors"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Commands are codeof, eventually, freeport and variable.
func Commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"codeof": codeOf, "eventually": eventually, "freeport": freePort, "variable": variable,
	}
}

// freePort puts the number of a port nobody listens on into a variable:
// freeport PORT.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport variable")
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
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

// eventually runs a command, or a line of sh, until it succeeds:
// eventually curl localhost, eventually 'berth ps | grep web'.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	switch len(args) {
	case 0:
		ts.Fatalf("usage: [!] eventually command [args...]")
	case 1:
		args = append([]string{"sh", "-c"}, args...)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("%s: not within a minute: %v", strings.Join(args, " "), err)
		}
	}
}

// codeOf runs a command and wants an exit code of it: codeof 125 berth run.
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
