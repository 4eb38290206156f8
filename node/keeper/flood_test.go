package keeper_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A flood of lines is in the log to the last one, also while kubelet rotates
// it, and the keeper does not grow by it.
func TestFlood(t *testing.T) {
	r := start(t)
	const lines, width = 400_000, 250 // 100 MB
	script := fmt.Sprintf("seq -f %%0%d.0f 1 %d; seq -f %%0%d.0f 1 %d >&2", width-1, lines*4/5, width-1, lines/5)
	l := r.script("flood", script)
	log := l.Log.Path
	began := time.Now()
	r.launch(l)
	done := make(chan struct{})
	most := 0
	rotated := []string{}
	go func() {
		defer close(done)
		r.wait("flood")
	}()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-time.After(50 * time.Millisecond):
			most = max(most, proportional(t, r.Pid()))
			old := fmt.Sprintf("%s.%04d", log, len(rotated))
			if err := os.Rename(log, old); err != nil {
				t.Fatal(err)
			}
			if err := r.ReopenLog(t.Context(), "flood"); err != nil {
				t.Fatal(err)
			}
			rotated = append(rotated, old)
		}
	}
	took := time.Since(began)
	read := map[string]*counted{"stdout": {next: 1}, "stderr": {next: 1}}
	slices.Sort(rotated)
	for _, name := range append(rotated, log) {
		countLines(t, name, read)
	}
	if out, err := read["stdout"].next-1, read["stderr"].next-1; out != lines*4/5 || err != lines/5 {
		t.Errorf("%d and %d of %d lines", out, err, lines)
	}
	rate := float64(lines*width) / took.Seconds() / 1e6
	t.Logf("%.0f MB/s into %d files in %s; the keeper had %d KiB at most", rate, len(rotated)+1, filepath.Dir(log), most)
	if most > 24<<10 {
		t.Errorf("the keeper grew to %d KiB", most)
	}
}

// counted is one stream as it is read: the line that has to come, and what of
// it was a record by itself.
type counted struct {
	next int
	part string
}

// countLines reads one file, whose lines go on where those before ended.
func countLines(t *testing.T, name string, streams map[string]*counted) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			t.Fatalf("%s: record %q", name, lines.Text())
		}
		s := streams[fields[1]]
		s.part += strings.Join(fields[3:], "")
		if fields[2] == "P" { // the writer was slow in the middle of it
			continue
		}
		n := 0
		if _, err := fmt.Sscanf(strings.TrimLeft(s.part, "0"), "%d", &n); err != nil || n != s.next {
			t.Fatalf("%s: %s %d (%v), want %d", name, fields[1], n, err, s.next)
		}
		s.next, s.part = s.next+1, ""
	}
}
