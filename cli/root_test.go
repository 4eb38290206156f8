package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// runLine runs a command line with nothing on stdin.
func runLine(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, fail bytes.Buffer
	code = Run(context.Background(), args, strings.NewReader(""), &out, &fail)
	return code, out.String(), fail.String()
}

func everyVerb(t *testing.T) []*cobra.Command {
	t.Helper()
	var all []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		all = append(all, cmd)
		for _, below := range cmd.Commands() {
			walk(below)
		}
	}
	walk((&program{}).root())
	return all
}

func TestEveryVerbIsDocumented(t *testing.T) {
	verbs := everyVerb(t)
	if len(verbs) < 80 {
		t.Fatalf("only %d verbs: root lost some", len(verbs))
	}
	for _, cmd := range verbs {
		name := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short text %q", name, cmd.Short)
		}
		if !strings.HasPrefix(cmd.Example, "  ") {
			t.Errorf("%s: no example", name)
		}
		for line := range strings.SplitSeq(cmd.Long+"\n"+cmd.Example, "\n") {
			if len([]rune(line)) > 90 {
				t.Errorf("%s: line is too wide for help: %q", name, line)
			}
		}
		if cmd.Args == nil && cmd.Name() != "help" {
			t.Errorf("%s: does not check its arguments", name)
		}
		if cmd.ValidArgsFunction == nil && cmd.ValidArgs == nil && !cmd.HasSubCommands() && cmd.Name() != "help" {
			t.Errorf("%s: completes nothing", name)
		}
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			if flag.Usage == "" || strings.HasSuffix(flag.Usage, ".") || len(flag.Usage) > 110 {
				t.Errorf("%s --%s: usage %q", name, flag.Name, flag.Usage)
			}
		})
	}
}

// The verbs that the first issue promises, with the names of docker's groups.
func TestVerbsThatArePromised(t *testing.T) {
	root := (&program{}).root()
	for line := range strings.SplitSeq(`run|create|start|stop|kill|restart|rm|ps|logs|exec|attach|inspect|top|stats|cp|pause|unpause|wait|events|update|rename|port
diff|commit|pull|push|load|save|images|rmi|tag|history|export|volume|network|system|info|version|up|node|keeper|registry|completion
container ls|container list|container ps|container prune|container rm|container inspect|container exec|image ls|image list|image prune|image rm|image inspect
network ls|network create|network connect|network disconnect|network inspect|network rm|network prune
volume ls|volume create|volume inspect|volume rm|volume prune|system df|system info|system events|system prune|system scrub|build|image build|builder prune|builder du`, "\n") {
		for path := range strings.SplitSeq(line, "|") {
			cmd, rest, err := root.Find(strings.Fields(path))
			if err != nil || len(rest) != 0 || cmd == root {
				t.Errorf("there is no berth %s", path)
			}
		}
	}
}

func TestEveryVerbHelps(t *testing.T) {
	for _, cmd := range everyVerb(t) {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		code, stdout, stderr := runLine(t, args...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "Usage:  "+cmd.CommandPath()) || !strings.Contains(stdout, "Examples\n") {
			t.Errorf("%v: code %d, stderr %q, stdout %q", args, code, stderr, stdout)
		}
	}
}

func TestUsageFailures(t *testing.T) {
	t.Setenv("BERTH_SOCKET", "/does/not/exist.sock")
	for _, c := range []struct {
		line, says string
		code       int
	}{
		{"launch", `berth: no verb "launch"; see berth --help`, 2},
		{"sotp", "berth: no verb \"sotp\"; did you mean stop?", 2},
		{"pod logs", `berth: pod: no verb "logs"; there is berth logs`, 2},
		{"network lsx", "berth: network: no verb \"lsx\"; did you mean ls?", 2},
		{"help runn", "did you mean run?", 2},
		{"ps --colour", "berth: ps: unknown flag: --colour; see berth ps --help", 1},
		{"run --colour", "berth: run: unknown flag: --colour; see berth run --help", 125},
		{"run", "berth: run: takes at least 1 argument, not 0: berth run [OPTIONS] IMAGE [COMMAND] [ARG...]", 125},
		{"rename a", "berth: rename: takes exactly 2 arguments, not 1: berth rename CONTAINER NAME", 1},
		{"port a b c", "takes at most 2 arguments, not 3", 1},
		{"ps a", "takes no arguments, not 1", 1},
		{"run -v data alpine", "berth: run: volume \"data\": target \"data\" must be an absolute path", 125},
		{"create -v data alpine", "berth: create: volume", 1},
		{"run -d -a stdout alpine", "contradict", 125},
		{"run --rm --restart always alpine", "contradict", 125},
		{"run --pull often alpine", "expected always, missing or never", 125},
		{"run --no-healthcheck --health-cmd x alpine", "contradict", 125},
		{"run --network host --network lab alpine", "cannot go with", 125},
		{"run -v /a:/x --tmpfs /x alpine", "two mounts have the target /x", 125},
		{"run -it alpine", "stdin is not a terminal", 125},
		{"run --detach-keys ctrl-ö alpine", "detach keys", 125},
		{"run --log-driver syslog alpine", "log driver", 125},
		{"exec -it web sh", "stdin is not a terminal", 1},
		{"update web", "say what to change", 1},
		{"cp a b", "one of source and target must be", 1},
		{"logs --tail x web", "expected a number or all", 1},
		{"logs --since x web", "expected 2006", 1},
		{"inspect --type x web", "expected container", 1},
		{"completion tcsh", "expected bash, zsh or fish", 1},
		{"ps --filter exited", "expected key=value", 1},
		{"start -a web db", "take one container", 1},
		{"ps", "berth: ps: no node answers at /does/not/exist.sock", 1},
		{"run --rm alpine", "berth: run: no node answers at /does/not/exist.sock", 125},
		{"stop a b c", "berth: stop: no node answers", 1},
	} {
		code, stdout, stderr := runLine(t, strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(stderr, c.says) || stdout != "" {
			t.Errorf("berth %s: code %d, want %d\nstdout %q\nstderr %q\n want %q", c.line, code, c.code, stdout, stderr, c.says)
		}
		if strings.Contains(stderr, "\x1b") {
			t.Errorf("berth %s: colors where there is no terminal: %q", c.line, stderr)
		}
	}
}

func TestCompletionIsQuietWithoutNode(t *testing.T) {
	t.Setenv("BERTH_SOCKET", "/does/not/exist.sock")
	for _, args := range [][]string{{"stop", ""}, {"run", "al"}, {"network", "rm", ""}, {"run", "--network", ""}} {
		code, stdout, _ := runLine(t, append([]string{"__complete"}, args...)...)
		if code != 0 || strings.TrimSpace(stdout) != ":4" {
			t.Errorf("%v: code %d, stdout %q", args, code, stdout)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, stdout, _ := runLine(t, "completion", shell); code != 0 || !strings.Contains(stdout, "__complete") {
			t.Errorf("%s: code %d, %d bytes", shell, code, len(stdout))
		}
	}
}

func TestClosest(t *testing.T) {
	names := []string{"web", "web-old", "db", "database", "worker"}
	for name, want := range map[string]string{
		"wbe": "web", "weeb": "web", "bd": "db", "databse": "database", "work": "worker", "zzz": "", "web": "web-old", "DB2": "db", "": "",
	} {
		if got := strings.Join(closest(name, names), " "); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		far  int
	}{{"", "", 0}, {"abc", "", 3}, {"stop", "sotp", 1}, {"kitten", "sitting", 3}, {"größe", "grösse", 2}} {
		if got := distance(c.a, c.b); got != c.far {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.far)
		}
	}
}
