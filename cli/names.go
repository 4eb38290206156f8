package cli

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"berth/spec"
)

// splitName splits a full name of an image into what people write of it:
// docker.io/library/alpine:3.20 has the repository alpine.
func splitName(name string) (repository, tag, digest string) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name, "", ""
	}
	if tagged, ok := named.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		digest = digested.Digest().String()
	}
	return reference.FamiliarName(named), tag, digest
}

// familiar is a full name of an image as people write it.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// fullName completes what people write: docker.io/library/alpine:latest.
func fullName(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.TagNameOnly(named).String()
}

// registryOf is the registry that a name points to; empty for no name.
func registryOf(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}

// published says where a port can be reached: "0.0.0.0:80, [::]:80" for one
// on all addresses.
func published(m spec.PortMapping) []string {
	ports := span(m.HostPort, m.Range)
	switch {
	case m.HostIP == "":
		return []string{"0.0.0.0:" + ports, "[::]:" + ports}
	case strings.Contains(m.HostIP, ":"):
		return []string{"[" + m.HostIP + "]:" + ports}
	}
	return []string{m.HostIP + ":" + ports}
}

// span is a port, or a range of count ports.
func span(first, count uint16) string {
	if count > 1 {
		return fmt.Sprintf("%d-%d", first, int(first)+int(count)-1)
	}
	return fmt.Sprint(first)
}

func protocolOf(m spec.PortMapping) string {
	if m.Protocol == "" {
		return "tcp"
	}
	return m.Protocol
}
