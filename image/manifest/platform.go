package manifest

import (
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
)

// Platform is what an image shall run on.
type Platform struct {
	text    string
	matcher platforms.MatchComparer
}

// ParsePlatform reads "linux/arm64/v8"; empty means this machine.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return Platform{text: platforms.DefaultString(), matcher: platforms.Default()}, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return Platform{}, errs.New(errs.Invalid, "platform %.80q: write os/architecture[/variant], such as linux/arm64/v8: %w", s, err)
	}
	return Platform{text: platforms.Format(p), matcher: platforms.Only(p)}, nil
}

func (p Platform) String() string { return p.text }

// Accepts says whether what is made for have runs on p.
func (p Platform) Accepts(have ocispec.Platform) bool {
	return have.OS == "" && have.Architecture == "" || p.matcher.Match(have)
}

// Choose picks the best manifest of an index.
func (p Platform) Choose(all []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var fit []ocispec.Descriptor
	var there []string
	for _, d := range all {
		switch {
		case d.Annotations["vnd.docker.reference.type"] == "attestation-manifest":
			continue
		case !IsIndex(d.MediaType) && !IsManifest(d.MediaType):
			continue
		case d.Platform == nil:
			fit = append(fit, d) // its configuration will say
		case p.matcher.Match(Normal(*d.Platform)):
			fit = append(fit, d)
		default:
			there = append(there, Format(*d.Platform))
		}
	}
	if len(fit) == 0 {
		if len(there) == 0 {
			return ocispec.Descriptor{}, errs.New(errs.NotFound, "the index holds no image for %s, nor for anything else", p)
		}
		slices.Sort(there)
		return ocispec.Descriptor{}, errs.New(errs.NotFound, "there is no image for %s, only for %s", p, strings.Join(slices.Compact(there), ", "))
	}
	return slices.MinFunc(fit, p.compare), nil
}

// compare puts the closer platform first, and no platform last.
func (p Platform) compare(a, b ocispec.Descriptor) int {
	switch {
	case a.Platform == nil && b.Platform == nil:
		return 0
	case a.Platform == nil:
		return 1
	case b.Platform == nil:
		return -1
	case p.matcher.Less(Normal(*a.Platform), Normal(*b.Platform)):
		return -1
	case p.matcher.Less(Normal(*b.Platform), Normal(*a.Platform)):
		return 1
	}
	return 0
}

// Normal gives a platform its usual form: arm64 instead of aarch64.
func Normal(p ocispec.Platform) ocispec.Platform { return platforms.Normalize(p) }

// Format writes a platform as ParsePlatform reads it.
func Format(p ocispec.Platform) string { return platforms.Format(Normal(p)) }
