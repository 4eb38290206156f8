package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/base/errs"
)

// program is one runtime program with one folder of records.
type program struct {
	name    string // for errors
	path    string
	root    string   // its records, --root
	args    []string // before every subcommand
	foreign bool
	timeout time.Duration // of one command
	filters *filters
	refuses bool // bundles of a later version than it knows
}

var programName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// newProgram finds a program, and makes the folder of its records.
// errs.NotFound: it is not there.
func newProgram(name, path, root string, foreign bool, args ...string) (*program, error) {
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, errs.New(errs.NotFound, "runtime %s: %w", name, err)
	}
	p := &program{name: name, path: path, root: root, foreign: foreign, timeout: usualTimeout, filters: newFilters(path)}
	p.args = append([]string{"--root", root, "--log-format", "json"}, args...)
	if filepath.Base(path) == "crun" && !foreign {
		p.args = append(p.args, "--cgroup-manager", "cgroupfs")
		p.refuses = true
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("runtime %s: %w", name, err)
	}
	return p, nil
}

func (p *program) records(id string) string { return filepath.Join(p.root, id) }

// run runs one of the program's commands to its end.
func (p *program) run(ctx context.Context, stdin []byte, args ...string) error {
	_, err := p.output(ctx, stdin, args...)
	return err
}

// choice is what a container is run with where that is not what the Runtime
// usually does. It is written down before the program is first run.
type choice struct {
	Program  string `json:"program,omitempty"` // path; "": the usual one
	Root     string `json:"root,omitempty"`    // of its records
	Space    string `json:"space,omitempty"`   // namespace with records of its own
	ID       string `json:"id,omitempty"`      // by which the program knows it
	Systemd  bool   `json:"systemd,omitempty"` // has systemd make the cgroup
	UID      int    `json:"uid,omitempty"`     // owner of streams
	GID      int    `json:"gid,omitempty"`
	Restored bool   `json:"restored,omitempty"` // frozen until Start

	// Of no use once the container is made.
	noPivot, noKeyring bool
	work               string // CRIU's
	restore            string
}

func (c choice) write(path string) error {
	if (c == choice{noPivot: c.noPivot, noKeyring: c.noKeyring, work: c.work, restore: c.restore}) {
		return nil
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func readChoice(path string) (c choice, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return choice{}, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	return c, err
}

// program is what c asks for: the usual one, or one that is made once.
func (r *Runtime) program(c choice) (*program, error) {
	key := choice{Program: c.Program, Root: c.Root, Space: c.Space, Systemd: c.Systemd}
	if key == (choice{}) {
		return r.usual, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.others[key]; p != nil {
		return p, nil
	}
	name, path, foreign, args := r.name, r.usual.path, r.usual.foreign, r.extra
	if c.Program != "" {
		path = c.Program
		name = filepath.Base(path)
		// Nobody has said what this program is like, but for its name.
		foreign, args = strings.Contains(name, "runsc"), nil
	}
	if !programName.MatchString(name) {
		return nil, errs.New(errs.Invalid, "runtime %q: not a name", name)
	}
	root := filepath.Join(r.state, name)
	switch {
	case c.Root != "":
		root = c.Root
	case c.Space != "":
		root += "+" + c.Space
	}
	if c.Systemd {
		foreign, args = true, append(slices.Clip(args), "--systemd-cgroup")
	}
	p, err := newProgram(name, path, root, foreign, args...)
	if err != nil {
		return nil, err
	}
	p.timeout = r.usual.timeout
	r.others[key] = p
	return p, nil
}

// flags are those of create and run that c asks for.
func (c choice) flags() (flags []string) {
	if c.noPivot {
		flags = append(flags, "--no-pivot")
	}
	if c.noKeyring && c.restore == "" {
		flags = append(flags, "--no-new-keyring")
	}
	return flags
}
