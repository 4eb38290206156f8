package berth_test

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages are the documents for people.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/flows/*.md", "bench/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 15 {
		t.Fatalf("found only %q", all)
	}
	return all
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sourceFiles are the names of all files of the house, without folders.
func sourceFiles(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && len(name) > 1 && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		names[d.Name()] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// What a document points to is there: pages, and the files and folders that
// flows and the architecture lead through.
func TestDocsLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	code := regexp.MustCompile("`([a-z0-9_./-]+)`")
	floors := regexp.MustCompile(`^(cmd|cli|daemon|face|node|image|spec|base|client|test|bench|packaging|docs)/`)
	names := sourceFiles(t)
	for _, page := range pages(t) {
		text := read(t, page)
		for _, found := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(path.Join(path.Dir(page), found[1])); err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, found[1])
			}
		}
		if !strings.HasPrefix(page, "docs/flows/") && page != "docs/architecture.md" {
			continue
		}
		for _, found := range code.FindAllStringSubmatch(text, -1) {
			switch name := found[1]; {
			case floors.MatchString(name):
				if _, err := os.Stat(name); err != nil {
					t.Errorf("%s: there is no %s", page, name)
				}
			case strings.HasSuffix(name, ".go") && !names[path.Base(name)]:
				t.Errorf("%s: there is no file %s", page, name)
			}
		}
	}
}

// The page of settings has every key that the configuration file may have, and
// no other; each says what it is.
func TestEverySettingIsExplained(t *testing.T) {
	text := read(t, "docs/configuration.md")
	_, block, _ := strings.Cut(text, "```toml\n")
	block, _, _ = strings.Cut(block, "```")
	key := regexp.MustCompile(`^([a-z_]+) *= *[^#]+#?(.*)$`)
	explained := map[string]bool{}
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if found := key.FindStringSubmatch(line); found != nil {
			explained[found[1]] = true
		} else if section, ok := strings.CutPrefix(line, "["); ok {
			section, _, _ = strings.Cut(section, "]")
			for part := range strings.SplitSeq(section, ".") {
				explained[part] = true
			}
		}
	}
	delete(explained, "runsc") // stands for any name

	tag := regexp.MustCompile("`toml:\"([a-z_]+)\"`")
	files, err := filepath.Glob("daemon/*.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, file := range files {
		for _, found := range tag.FindAllStringSubmatch(read(t, file), -1) {
			known[found[1]] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if !explained[name] {
			t.Errorf("docs/configuration.md says nothing of %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(explained)) {
		if !known[name] {
			t.Errorf("docs/configuration.md explains %s, which nobody reads", name)
		}
	}
}
