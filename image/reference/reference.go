// Package reference reads the names of images as people write them, by
// docker's rules: "alpine" is docker.io/library/alpine:latest, a first
// component with a dot, a colon or the word localhost is a registry.
package reference

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// maxLength bounds what is parsed at all; a repository may have 255 letters,
// a tag 128, a digest with its algorithm some 140.
const maxLength = 600

// Name is a full reference: registry, repository, and a tag or digest or
// both. The zero value is no name.
type Name struct {
	domain, path, tag string
	digest            digest.Digest
}

// Parse reads s. A name without tag and digest gets the tag "latest". The
// error is of kind errs.Invalid and says what is wrong with s.
func Parse(s string) (Name, error) {
	switch {
	case s == "":
		return Name{}, errs.New(errs.Invalid, "image reference is empty: write name[:tag] or name@sha256:…")
	case len(s) > maxLength:
		return Name{}, errs.New(errs.Invalid, "image reference %.40q… is longer than %d letters", s, maxLength)
	case strings.Contains(s, "://"):
		return Name{}, errs.New(errs.Invalid, "image reference %q has a scheme: leave out everything up to ://", s)
	case strings.TrimSpace(s) != s:
		return Name{}, errs.New(errs.Invalid, "image reference %q has space around it", s)
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Name{}, errs.New(errs.Invalid, "image reference %q: %w", s, err)
	}
	n := Name{domain: reference.Domain(named), path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		n.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		n.digest = d.Digest()
	}
	if n.tag == "" && n.digest == "" {
		n.tag = "latest"
	}
	return n, nil
}

// Domain is the registry, with its port: docker.io, localhost:5000.
func (n Name) Domain() string { return n.domain }

// Path is the repository within the registry: library/alpine.
func (n Name) Path() string { return n.path }

// Tag may be empty where there is a digest.
func (n Name) Tag() string { return n.tag }

// Digest is empty where the name has only a tag.
func (n Name) Digest() digest.Digest { return n.digest }

// IsZero says whether n is no name at all.
func (n Name) IsZero() bool { return n.path == "" }

// Repository is registry and repository: docker.io/library/alpine.
func (n Name) Repository() string { return n.domain + "/" + n.path }

// Object is what to ask the registry for: the digest if there is one, which
// then decides alone, else the tag.
func (n Name) Object() string {
	if n.digest != "" {
		return n.digest.String()
	}
	return n.tag
}

// String is the full form, docker.io/library/alpine:3.20; Parse reads it back.
func (n Name) String() string {
	if n.IsZero() {
		return ""
	}
	return n.Repository() + n.suffix()
}

// Familiar is the short form that people write: alpine:3.20. Parse reads it
// back to the same name.
func (n Name) Familiar() string {
	if n.IsZero() {
		return ""
	}
	return n.FamiliarRepository() + n.suffix()
}

// FamiliarRepository is the short form without tag and digest.
func (n Name) FamiliarRepository() string {
	named, err := reference.WithName(n.Repository())
	if err != nil {
		return n.Repository()
	}
	return reference.FamiliarName(named)
}

// WithDigest is the same repository at d, without a tag.
func (n Name) WithDigest(d digest.Digest) Name {
	n.tag, n.digest = "", d
	return n
}

// Untagged says whether n names by digest alone.
func (n Name) Untagged() bool { return n.tag == "" }

func (n Name) suffix() string {
	var s string
	if n.tag != "" {
		s = ":" + n.tag
	}
	if n.digest != "" {
		s += "@" + n.digest.String()
	}
	return s
}
