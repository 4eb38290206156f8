package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every verb is in a transcript.
func TestEveryVerbHasATranscript(t *testing.T) {
	var scripts strings.Builder
	files, err := filepath.Glob("script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scripts.Write(text)
	}
	verbs := verbsOf(t, "")
	if len(verbs) < 40 {
		t.Fatalf("found only the verbs %q", verbs)
	}
	for _, verb := range verbs {
		line := regexp.MustCompile(`(?m)\bberth (--socket \S+ )?` + verb + `( |$)`)
		if !line.MatchString(scripts.String()) {
			t.Errorf("no script/*.txtar runs berth %s", verb)
		}
	}
}

// verbsOf reads the verbs from the help, those under others as "network ls".
func verbsOf(t *testing.T, above string) (verbs []string) {
	t.Helper()
	out, err := exec.Command(program, append(strings.Fields(above), "--help")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	verb := regexp.MustCompile(`^  ([a-z]+)  +[A-Z].*$`)
	for line := range strings.Lines(string(out)) {
		found := verb.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if found == nil {
			continue
		}
		name := strings.TrimSpace(above + " " + found[1])
		if strings.Contains(line, "Work with ") {
			verbs = append(verbs, verbsOf(t, name)...)
			continue
		}
		verbs = append(verbs, name)
	}
	return verbs
}
