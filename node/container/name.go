package container

import (
	"crypto/rand"
	"encoding/hex"
	mrand "math/rand/v2"
	"regexp"
	"strings"

	"berth/base/errs"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// checkName fails with errs.Invalid where name cannot be a container's.
func checkName(name string) error {
	if !validName.MatchString(name) {
		return errs.New(errs.Invalid, "container name %.140q: want up to 128 of a-z A-Z 0-9 _ . -, beginning with a letter or digit", name)
	}
	return nil
}

// newID makes an id that nobody has: 64 hexadecimal digits, not all decimal in
// the part that people see, lest it be taken for a number.
func newID() string {
	var b [32]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		if strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}

// reserve takes name, or one made up where it is empty, for the container id.
// errs.Exists: another has it.
func (s *Set) reserve(id, image, name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if name != "" {
		if err := checkName(name); err != nil {
			return "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		name = s.madeUp(id)
	}
	if err := s.takeLocked(name, id); err != nil {
		return "", err
	}
	s.pending[id] = image
	return name, nil
}

func (s *Set) takeLocked(name, id string) error {
	if holder, taken := s.names[name]; taken && holder != id {
		return errs.New(errs.Exists, "the name %q is in use by container %s: remove or rename that one, or choose another name", name, holder[:min(12, len(holder))])
	}
	s.names[name] = id
	return nil
}

// madeUp is a name that nobody has. mu is held.
func (s *Set) madeUp(id string) string {
	for range 50 {
		name := adjectives[mrand.N(len(adjectives))] + "_" + nouns[mrand.N(len(nouns))]
		if _, taken := s.names[name]; !taken {
			return name
		}
	}
	return adjectives[mrand.N(len(adjectives))] + "_" + nouns[mrand.N(len(nouns))] + "_" + id[:6]
}

// free gives up what reserve took.
func (s *Set) free(id, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, id)
	if s.names[name] == id {
		delete(s.names, name)
	}
}

var adjectives = [...]string{
	"able", "agile", "amber", "apt", "bold", "brave", "breezy", "bright", "brisk", "calm",
	"candid", "careful", "cheerful", "civil", "clear", "clever", "coastal", "cosy", "crisp", "curious",
	"daring", "deft", "eager", "early", "earnest", "easy", "even", "fair", "fearless", "fine",
	"fleet", "fond", "frank", "free", "fresh", "gentle", "glad", "golden", "grand", "handy",
	"happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid",
	"lucky", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "open", "patient",
	"placid", "plain", "polite", "prompt", "proud", "quick", "quiet", "rapid", "ready", "robust",
	"salty", "sane", "serene", "sharp", "silent", "sleek", "smart", "snug", "solid", "sound",
	"steady", "stout", "sturdy", "sunny", "sure", "swift", "tidy", "tranquil", "trim", "trusty",
	"upbeat", "valiant", "vivid", "warm", "watchful", "wise", "witty", "worthy", "young", "zesty",
}

var nouns = [...]string{
	"albatross", "anchor", "barge", "barnacle", "bay", "beacon", "bollard", "bosun", "bow", "breaker",
	"brig", "buoy", "cable", "canoe", "captain", "capstan", "catamaran", "chart", "cleat", "clipper",
	"coast", "compass", "coral", "cormorant", "corvette", "crane", "current", "cutter", "davit", "deck",
	"dinghy", "dock", "dolphin", "estuary", "ferry", "fjord", "fleet", "frigate", "galley", "gannet",
	"gull", "harbour", "hatch", "haven", "helm", "heron", "hull", "island", "jetty", "kayak",
	"keel", "ketch", "knot", "lagoon", "lantern", "lighter", "lighthouse", "lugger", "mariner", "mast",
	"mooring", "narwhal", "oar", "orca", "osprey", "otter", "pelican", "pier", "pilot", "plover",
	"porpoise", "port", "puffin", "quay", "raft", "reef", "rigging", "rudder", "sail", "sandbar",
	"schooner", "seal", "sextant", "shoal", "skiff", "skipper", "sloop", "spar", "starfish", "stern",
	"tern", "tide", "tiller", "trawler", "tugboat", "voyage", "walrus", "wave", "wharf", "yawl",
}
