package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
)

// crun compiles a container's seccomp profile anew for every container, which
// takes twice the time of all the rest, and leaves the outcome in its records.
// It also takes one that is compiled already, in an annotation. So the first
// container with a profile pays for it, and the others are given what crun
// itself made of the same profile.
const compiledFilter = "run.oci.seccomp_bpf_data"

// filters holds compiled profiles by the hash of the profile's JSON. Programs
// that do not take them have none: a nil *filters does nothing.
type filters struct {
	mu       sync.Mutex
	compiled map[profile]string // base64
}

const maxFilters = 64 // some 10 KiB each

type profile [sha256.Size]byte

// newFilters looks whether the program takes compiled profiles. One that did
// not would run the container without any, so its word is in the program.
func newFilters(program string) *filters {
	text, err := os.ReadFile(program)
	if err != nil || filepath.Base(program) != "crun" || !bytes.Contains(text, []byte(compiledFilter)) {
		return nil
	}
	return &filters{compiled: map[profile]string{}}
}

// apply writes to file what c says, with the compiled profile in place of its
// own. It gives "" for file where the bundle's is to be used, and the profile
// to learn, if there is one.
func (f *filters) apply(c *config, file string) (use string, learn *profile, err error) {
	if f == nil || c.linux["seccomp"] == nil {
		return "", nil, nil
	}
	config, linux := maps.Clone(c.fields), maps.Clone(c.linux)
	var extra struct {
		Flags        []string
		ListenerPath string
	}
	if json.Unmarshal(linux["seccomp"], &extra) != nil || len(extra.Flags) > 0 || extra.ListenerPath != "" {
		return "", nil, nil // more than a filter
	}
	key := profile(sha256.Sum256(linux["seccomp"]))
	f.mu.Lock()
	compiled := f.compiled[key]
	f.mu.Unlock()
	if compiled == "" {
		return "", &key, nil
	}
	delete(linux, "seccomp")
	annotations := map[string]string{}
	if config["annotations"] != nil && json.Unmarshal(config["annotations"], &annotations) != nil {
		return "", nil, nil // the program will say what is wrong
	}
	annotations[compiledFilter] = compiled
	if config["linux"], err = json.Marshal(linux); err != nil {
		return "", nil, fmt.Errorf("bundle: %w", err)
	}
	if config["annotations"], err = json.Marshal(annotations); err != nil {
		return "", nil, fmt.Errorf("bundle: %w", err)
	}
	data, err := json.Marshal(config)
	if err != nil {
		return "", nil, fmt.Errorf("bundle: %w", err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return "", nil, fmt.Errorf("bundle: %w", err)
	}
	return file, nil, nil
}

// learn keeps what the program made of a profile for a container.
func (f *filters) learn(key *profile, records string) {
	if f == nil || key == nil {
		return
	}
	compiled, err := os.ReadFile(filepath.Join(records, "seccomp.bpf"))
	if err != nil || len(compiled) == 0 || len(compiled)%8 != 0 { // whole instructions
		return // the next container tries again
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.compiled) >= maxFilters {
		clear(f.compiled)
	}
	f.compiled[*key] = base64.StdEncoding.EncodeToString(compiled)
}
