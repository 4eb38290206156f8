package reference_test

import (
	"errors"
	"strings"
	"testing"

	"berth/base/errs"
	"berth/image/reference"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, full, familiar, domain, path, tag, object string }{
		{"alpine", "docker.io/library/alpine:latest", "alpine:latest", "docker.io", "library/alpine", "latest", "latest"},
		{"alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20", "docker.io", "library/alpine", "3.20", "3.20"},
		{"index.docker.io/foo/bar", "docker.io/foo/bar:latest", "foo/bar:latest", "docker.io", "foo/bar", "latest", "latest"},
		{"localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000", "x", "1", "1"},
		{"localhost/x", "localhost/x:latest", "localhost/x:latest", "localhost", "x", "latest", "latest"},
		{"[::1]:5000/a/b:c", "[::1]:5000/a/b:c", "[::1]:5000/a/b:c", "[::1]:5000", "a/b", "c", "c"},
		{"alpine@" + someDigest, "docker.io/library/alpine@" + someDigest, "alpine@" + someDigest, "docker.io", "library/alpine", "", someDigest},
		{"ghcr.io/a/b:1@" + someDigest, "ghcr.io/a/b:1@" + someDigest, "ghcr.io/a/b:1@" + someDigest, "ghcr.io", "a/b", "1", someDigest},
	} {
		n, err := reference.Parse(c.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", c.in, err)
			continue
		}
		got := []string{n.String(), n.Familiar(), n.Domain(), n.Path(), n.Tag(), n.Object()}
		want := []string{c.full, c.familiar, c.domain, c.path, c.tag, c.object}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("Parse(%q): got %q, want %q", c.in, got[i], want[i])
			}
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "empty",
		"Alpine":                 "lowercase",
		"https://ghcr.io/a":      "scheme",
		" alpine":                "space",
		"alpine:":                "invalid reference",
		"alpine@sha256:12":       "invalid",
		strings.Repeat("a", 700): "longer",
		strings.Repeat("a", 300): "255",
		strings.Repeat("a", 64):  "hexadecimal",
	} {
		_, err := reference.Parse(in)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.20q): %v; want an Invalid error that says %q", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine", "localhost:5000/x:1", "a@" + someDigest, "A/b:c", "[::1]:1/x", "a:b@c", "..", "a//b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := reference.Parse(s)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatalf("%q: kind of %v", s, err)
			}
			return
		}
		for _, form := range []string{n.String(), n.Familiar()} {
			again, err := reference.Parse(form)
			if err != nil || again != n {
				t.Fatalf("%q → %q → %v, %v", s, form, again, err)
			}
		}
		if n.Domain() == "" || n.Path() == "" || n.Object() == "" {
			t.Fatalf("%q: part missing in %#v", s, n)
		}
	})
}
