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

// Documents name only verbs that there are.
func TestDocsNameVerbsThatExist(t *testing.T) {
	// Those that are in no list, or fill their column of it.
	known := map[string]bool{"berth": true, "help": true, "keeper": true, "lazy": true, "pause": true, "snapshotter": true}
	for _, verb := range verbsOf(t, "") {
		known[verb] = true
		above, _, _ := strings.Cut(verb, " ")
		known[above] = true
	}
	var pages []string
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/flows/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	code := regexp.MustCompile("(?m)`[^`\n]+`|^    .*$|^[$#] .*$")
	call := regexp.MustCompile(`(?:^|[ /$(])berth ([a-z]+)(?: ([a-z]+))?`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, snippet := range code.FindAllString(string(text), -1) {
			for _, found := range call.FindAllStringSubmatch(strings.ReplaceAll(strings.Trim(snippet, "`"), "--snapshotter berth", ""), -1) {
				verb := found[1]
				if below := verb + " " + found[2]; known[below] || found[2] != "" && hasBelow(known, verb) {
					verb = below
				}
				if !known[verb] {
					t.Errorf("%s: there is no berth %s", page, verb)
				}
			}
		}
	}
}

// hasBelow reports whether verb only holds others.
func hasBelow(known map[string]bool, verb string) bool {
	for name := range known {
		if strings.HasPrefix(name, verb+" ") {
			return true
		}
	}
	return false
}
