package option_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth/cli/option"
)

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestEnv(t *testing.T) {
	mine := map[string]string{"HOME": "/home/ann", "EMPTY": ""}
	lookup := func(name string) (string, bool) { v, ok := mine[name]; return v, ok }
	name := file(t, "\ufeff# a comment\n\nA=1\n  B = 2 \nHOME\nMISSING\nC=\"quoted\"\r\n")
	if _, err := option.Env([]string{name}, nil, lookup); err == nil {
		t.Error("a name with white space was taken")
	}
	name = file(t, "\ufeff# a comment\n\nA=1\n  B=2 \nHOME\nMISSING\nC=\"quoted\"\r\nD=\n")
	got, err := option.Env([]string{name}, []string{"A=3", "EMPTY", "NONE", "X=a=b", "Y= z"}, lookup)
	check(t, name, got, []string{"A=1", "B=2 ", "HOME=/home/ann", `C="quoted"`, "D=", "A=3", "EMPTY=", "X=a=b", "Y= z"}, err)

	refuse(t, func(s string) error { _, err := option.Env(nil, []string{s}, lookup); return err }, map[string]string{
		"": "NAME=value", "=x": "NAME=value",
	})
	refuse(t, func(s string) error { _, err := option.Env([]string{s}, nil, lookup); return err }, map[string]string{
		"/does/not/exist":     "no such file",
		file(t, "a b=c\n"):    "white space",
		file(t, "=c\n"):       "NAME=value",
		file(t, "A=\xff\xfe"): "not UTF-8",
	})
}

func TestLabels(t *testing.T) {
	name := file(t, "team=web\nlevel=low\n#no\nbare\n")
	got, err := option.Labels([]string{name}, []string{"level=high", "x=y=z"})
	check(t, name, got, map[string]string{"team": "web", "level": "high", "bare": "", "x": "y=z"}, err)
	refuse(t, func(s string) error { _, err := option.Labels(nil, []string{s}); return err }, map[string]string{"=x": "key=value"})
}
