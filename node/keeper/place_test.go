package keeper

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/base/errs"
)

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"":                          {scheme: nowhere},
		"/run/a b%20?x=1":           {path: "/run/a b%20?x=1"},
		"fifo:///run/a%20b":         {scheme: "fifo", path: "/run/a b"},
		"file:///var/log/x?y=1":     {scheme: "file", path: "/var/log/x"},
		"binary:///bin/l?b=2&a=1&b": {scheme: "binary", path: "/bin/l", args: []string{"b", "2", "a", "1"}},
		"binary-v2:///bin/l?only":   {scheme: "binary-v2", path: "/bin/l", args: []string{"only", ""}},
		"binary:///usr/local/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib": {scheme: "binary", path: "/usr/local/bin/nerdctl", args: []string{"_NERDCTL_INTERNAL_LOGGING", "/var/lib"}},
	} {
		got, err := parsePlace(text)
		if err != nil || got.scheme != want.scheme || got.path != want.path || !slices.Equal(got.args, want.args) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// A file or a logger takes both streams, unless the other has its own place.
func TestPlaces(t *testing.T) {
	for _, tt := range []struct{ out, err, want string }{
		{"file:///a", "", "/a"},
		{"file:///a", "file:///b", "/b"},
		{"file:///a", "/fifo", "/fifo"},
		{"binary:///l", "", "/l"},
		{"binary:///l", "binary:///m", "/l"},
		{"binary:///l", "/fifo", "/fifo"},
		{"/fifo", "", ""},
		{"", "/fifo", "/fifo"},
		{"", "binary:///l", "/l"},
	} {
		_, _, complaints, err := (&Streams{Stdout: tt.out, Stderr: tt.err}).places()
		if err != nil || complaints.path != tt.want {
			t.Errorf("%q and %q: stderr goes to %q, %v", tt.out, tt.err, complaints.path, err)
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	for _, seed := range []string{"", "/a", "fifo:///a", "file://h/a", "binary:///a?b=c&%zz", "binary-v2:///", "::", "a\x00b", "fifo:///../..", "FILE:///x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlace(text)
		if err != nil {
			if errs.KindOf(err) != errs.Invalid {
				t.Errorf("%q: %v (%s)", text, err, errs.KindOf(err))
			}
			return
		}
		if p.scheme == nowhere {
			if text != "" {
				t.Errorf("%q is nowhere", text)
			}
			return
		}
		if !filepath.IsAbs(p.path) || len(p.args)%2 != 0 || len(p.args) > 0 && !strings.HasPrefix(p.scheme, "binary") {
			t.Errorf("%q: %+v", text, p)
		}
	})
}
