package container

import (
	"slices"
	"strings"
)

// mergeEnv lays KEY=value pairs over others; a KEY alone takes one away.
func mergeEnv(base, over []string) []string {
	merged := slices.Clone(base)
	for _, pair := range over {
		key, _, valued := strings.Cut(pair, "=")
		i := slices.IndexFunc(merged, func(old string) bool { return strings.HasPrefix(old, key+"=") })
		switch {
		case i >= 0 && valued:
			merged[i] = pair
		case i >= 0:
			merged = slices.Delete(merged, i, i+1)
		case valued:
			merged = append(merged, pair)
		}
	}
	return merged
}
