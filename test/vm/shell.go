package vm

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Shell is an /init.sh that runs what Try and Run send to the console: each
// script in a shell of its own, its output and exit code between two marks.
const Shell = `
dmesg -n 1
stty raw -echo
echo "guest: shell"
: > /run/next
while read -r line; do
	case $line in
	"run "*)
		echo "guest: begin ${line#run }"
		base64 -d /run/next > /run/script
		: > /run/next
		sh /run/script </dev/null 2>&1
		echo "
guest: end ${line#run } $?" ;;
	off) # as an init does
		kill -TERM -1; sleep 1; kill -KILL -1
		exit 0 ;;
	*) echo "$line" >> /run/next ;;
	esac
done
`

// patience is how long a command in a guest may take.
const patience = 5 * time.Minute

// Try runs a shell script in a guest whose disk has Shell as its script, and
// returns what it printed and its exit code.
func (g *Guest) Try(t *testing.T, script string) (string, int) {
	t.Helper()
	return g.TryFor(t, patience, script)
}

// TryFor is Try for what may take as long as limit.
func (g *Guest) TryFor(t *testing.T, limit time.Duration, script string) (string, int) {
	t.Helper()
	g.Wait(t, "guest: shell\n", patience)
	g.asked++
	encoded := base64.StdEncoding.EncodeToString([]byte(script))
	for len(encoded) > 0 {
		line := encoded[:min(len(encoded), 512)] // whole groups of four
		encoded = encoded[len(line):]
		g.send(t, line)
	}
	g.send(t, fmt.Sprintf("run %d", g.asked))
	end := fmt.Sprintf("\nguest: end %d ", g.asked)
	g.Wait(t, end, limit)
	_, out, _ := strings.Cut(g.Output(), fmt.Sprintf("guest: begin %d\n", g.asked))
	out, rest, _ := strings.Cut(out, end)
	word, _, _ := strings.Cut(rest, "\n")
	code, err := strconv.Atoi(strings.TrimSpace(word))
	must(t, err)
	return strings.TrimSuffix(out, "\n"), code
}

// Run is Try for what has to work.
func (g *Guest) Run(t *testing.T, script string) string {
	t.Helper()
	out, code := g.Try(t, script)
	if code != 0 {
		t.Fatalf("in the guest: exit code %d of:\n%s\n%s", code, script, out)
	}
	return out
}

// Off ends a guest that runs Shell: its disk is synced and it powers off.
func (g *Guest) Off(t *testing.T) {
	t.Helper()
	g.send(t, "off")
	g.WaitEnd(t, patience)
}

func (g *Guest) send(t *testing.T, line string) {
	t.Helper()
	_, err := g.console.Write([]byte(line + "\n"))
	must(t, err)
}
