package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/test/machine"
)

// specs is how many validation specs there are in critest; further five measure
// speed, and run only if asked for.
const specs = 117

// unable are those that may be skipped, and why.
var unable = map[string]struct {
	specs  *regexp.Regexp
	reason func() string // "" where they can run
}{
	"benchmarks": {regexp.MustCompile(`\[Serial\] \[Benchmark\]|benchmark`), func() string { return "they measure speed, and run with -benchmark alone" }},
	"AppArmor": {regexp.MustCompile(`^\[k8s\.io\] AppArmor `), func() string {
		if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.HasPrefix(string(on), "Y") {
			return ""
		}
		return "this kernel has no AppArmor"
	}},
}

// spec is what critest reports of one of its specs.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

// critest runs the specs that match focus, all if that is "", and returns what
// it reports of them.
func (n *node) critest(t *testing.T, focus string, args ...string) []spec {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	report := filepath.Join(n.Dir, "report.json")
	args = append([]string{
		"--runtime-endpoint", "unix://" + n.Socket, "--image-endpoint", "unix://" + n.Socket,
		"-ginkgo.json-report", report, "-ginkgo.no-color", "-ginkgo.focus", focus, "-ginkgo.seed", "1",
	}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(tools, "critest"), args...)
	cmd.Dir = n.Dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	failed := cmd.Run()
	body, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("critest: %v\n%s", errors.Join(failed, err), out.Bytes())
	}
	var suites []struct{ SpecReports []spec }
	machine.Must(t, json.Unmarshal(body, &suites))
	var all []spec
	for _, suite := range suites {
		all = append(all, suite.SpecReports...)
	}
	return all
}

// judge fails the test for every spec that did not pass, and returns how many
// passed and how many were skipped as they may be. With focus those do not count
// that it leaves out.
func judge(t *testing.T, all []spec, focus string) (passed, skipped int) {
	t.Helper()
	for _, s := range all {
		switch {
		case focus != "" && s.State == "skipped" && s.Failure.Message == "":
		case s.State == "passed" && s.LeafNodeType == "It":
			passed++
		case s.State == "passed":
		case s.State == "skipped" && may(s.name()) != "":
			skipped++
		default:
			t.Errorf("%s after %s: %s\n\t%s:%d: %s", s.State, s.RunTime.Round(time.Millisecond), s.name(),
				filepath.Base(s.Failure.Location.FileName), s.Failure.Location.LineNumber, brief(s.Failure.Message))
		}
	}
	return passed, skipped
}

// may says why a spec may be skipped; "": it may not.
func may(name string) string {
	for _, u := range unable {
		if u.specs.MatchString(name) {
			return u.reason()
		}
	}
	return ""
}

func brief(message string) string {
	message = strings.Join(strings.Fields(message), " ")
	if len(message) > 600 {
		message = message[:600] + "…"
	}
	return message
}

// Every spec that this machine can run passes, on the node's own network.
// FOCUS runs only some of them.
func TestCritest(t *testing.T) {
	n, focus := newNode(t, "", ""), os.Getenv("FOCUS")
	passed, skipped := judge(t, n.critest(t, focus), focus)
	fmt.Fprintf(t.Output(), "critest: %d passed, %d skipped as they may be\n", passed, skipped)
	if focus == "" && passed+skipped < specs && !t.Failed() {
		t.Errorf("there were %d specs, want at least %d", passed+skipped, specs)
	}
}

// networked are the specs that see how pods are connected.
const networked = `Networking|Streaming|PodSandbox|Idempotence|Multiple Containers|NamespaceOption`

// With CNI's plugins those pass too that the network is something to, here
// with streams over WebSocket.
func TestCritestWithCNI(t *testing.T) {
	n := newNode(t, bridge, "")
	passed, _ := judge(t, n.critest(t, networked, "--websocket-exec", "--websocket-attach", "--websocket-portforward"), networked)
	fmt.Fprintf(t.Output(), "critest: %d passed\n", passed)
	if passed < 30 {
		t.Errorf("there were %d specs", passed)
	}
}
