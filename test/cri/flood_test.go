package cri

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/cri/images"
	"berth/test/machine"
)

// A container that says more than a disk can take has every byte of it in its
// log, in order, while the log is rotated as kubelet does it and the node is
// killed and started again. What is between them does not grow by it.
func TestFloodedLog(t *testing.T) {
	n := newNode(t, "", "")
	c := n.caller(t)
	// What it says is numbered and has a sum: 16 times 10 MB on the one stream,
	// 2 MB on the other at the same time.
	const lines, width, times = 100_000, 100, 16
	say := "seq -s '" + strings.Repeat("x", width-7) + "\n' 100001 " + strconv.Itoa(100_000+lines) + " > /lines\n" +
		"until [ -e /go ]; do sleep 0.1; done\n" +
		"head -n 20000 /lines >&2 & i=0; while [ $i -lt " + strconv.Itoa(times) + " ]; do cat /lines; i=$((i+1)); done; wait; touch /said; exec sleep 1000"
	pod := c.pod("flooded")
	config := c.config("flood", c.pull(images.Busybox))
	config.Command = []string{"sh", "-c", say}
	id := c.up(pod, config)
	log := filepath.Join(n.Dir, "logs", "flood.log")
	before := n.proportional(t, "keeper")
	if out, code := c.sh(id, "touch /go"); code != 0 {
		t.Fatal(out)
	}

	var files []string
	most := 0
	for rotation, over := 0, false; !over; rotation++ {
		if rotation == 4 {
			n.Kill()
			n.Start(t)
			c = n.caller(t)
		}
		<-time.After(50 * time.Millisecond)
		most = max(most, n.proportional(t, "keeper"))
		if rotation < 100 {
			files = append(files, fmt.Sprintf("%s.%04d", log, rotation))
			machine.Must(t, os.Rename(log, files[rotation]))
			_, err := c.ReopenContainerLog(t.Context(), &api.ReopenContainerLogRequest{ContainerId: id})
			machine.Must(t, err)
		}
		_, code := c.sh(id, "test -e /said")
		over = code == 0
	}
	all := numbered(lines)
	want := map[string]string{"stdout": sumOf(bytes.Repeat(all, times)), "stderr": sumOf(all[:20_000*width])}
	machine.Until(t, "all is in the log", func() error {
		for stream, said := range readLogs(t, append(slices.Clone(files), log)) {
			if sumOf(said) != want[stream] {
				return fmt.Errorf("%s is %s, want %s", stream, sumOf(said), want[stream])
			}
		}
		return nil
	})
	t.Logf("%d MB in %d files; the keeper went from %d to %d KiB at most", lines*width*times/1_000_000, len(files)+1, before, most)
	if most > before+16<<10 {
		t.Errorf("the keeper grew from %d to %d KiB", before, most)
	}
}

// numbered are lines as seq writes them: the last one has nothing after it.
func numbered(lines int) []byte {
	var text bytes.Buffer
	for i := range lines {
		text.WriteString(strconv.Itoa(100_001 + i))
		if i < lines-1 {
			text.WriteString(strings.Repeat("x", 93))
		}
		text.WriteByte('\n')
	}
	return text.Bytes()
}

// sumOf is the length of a text and its sum.
func sumOf(text []byte) string { return fmt.Sprintf("%d bytes %x", len(text), sha256.Sum256(text)) }

// readLogs puts together again what was said on each stream, from files in the
// order that they were written.
func readLogs(t *testing.T, files []string) map[string][]byte {
	t.Helper()
	streams := map[string]*bytes.Buffer{"stdout": {}, "stderr": {}}
	for _, name := range files {
		text, err := os.ReadFile(name)
		machine.Must(t, err)
		records := bufio.NewScanner(bytes.NewReader(text))
		for records.Scan() {
			// time, stream, F for the end of a line or P, text
			fields := bytes.SplitN(records.Bytes(), []byte(" "), 4)
			if len(fields) != 4 || streams[string(fields[1])] == nil {
				t.Fatalf("%s: record %q", name, records.Text())
			}
			into := streams[string(fields[1])]
			into.Write(fields[3])
			if string(fields[2]) == "F" {
				into.WriteByte('\n')
			}
		}
		machine.Must(t, records.Err())
	}
	return map[string][]byte{"stdout": streams["stdout"].Bytes(), "stderr": streams["stderr"].Bytes()}
}

// proportional is the share of memory of a process of the node, in KiB.
func (n *node) proportional(t *testing.T, role string) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", n.Helper(role)))
	machine.Must(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			_, err := fmt.Sscan(rest, &kib)
			machine.Must(t, err)
		}
	}
	return kib
}
