package seccomp

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// recorded is a profile that was recorded. It is a profile of OCI, with words
// about where it comes from that runtimes pass over.
type recorded struct {
	specs.LinuxSeccomp
	From []string `json:"recordedFrom"` // "<namespace>/<pod>/<container>"
}

// mostProfiles are kept in Config.Profiles, the newest.
const mostProfiles = 1000

// keepProfile writes what a container used, where that is recorded. Failing
// costs no more than the profile.
func (w *Watcher) keepProfile(ctx context.Context, c *watched) {
	c.mu.Lock()
	wanted, file, name := c.Mode == record && len(c.Used) > 0, c.File, c.Name
	used := slices.Sorted(maps.Keys(c.Used))
	c.mu.Unlock()
	if !wanted {
		return
	}
	err := w.merge(w.config.Profiles, profileFile(name), name, used)
	if file != "" {
		err = errors.Join(err, w.merge(w.config.Localhost, file, name, used))
	}
	if err != nil {
		w.config.Log.ErrorContext(ctx, "recorded seccomp profile", "name", name, "err", err)
	}
	w.trim(ctx)
}

// profileFile is the name of a recorded profile's file.
func profileFile(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '/':
			return '_'
		case r == '-', r == '.', r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z':
			return r
		}
		return '-'
	}, name) + ".json"
}

// merge adds calls to a recorded profile, which it makes where there is none.
// It never leaves dir, whatever file is or links to, nor changes what was not
// recorded.
func (w *Watcher) merge(dir, file, name string, used []string) error {
	w.profiles.Lock()
	defer w.profiles.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	profile, err := readRecorded(root, file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		profile = emptyProfile()
	case err != nil:
		return err
	case len(profile.From) == 0:
		return errs.New(errs.Exists, "profile %s was not recorded, and stays as it is", file)
	}
	profile.add(name, used)
	text, err := json.MarshalIndent(profile, "", "  ")
	if err != nil {
		return err
	}
	if err := root.MkdirAll(path.Dir(filepath.ToSlash(file)), 0o700); err != nil {
		return err
	}
	if err := root.WriteFile(file+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return root.Rename(file+".new", file)
}

func readRecorded(root *os.Root, file string) (recorded, error) {
	var r recorded
	text, err := root.ReadFile(file)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, errs.New(errs.Invalid, "profile %s: %w", file, err)
	}
	return r, nil
}

// emptyProfile allows what every runtime needs to start a container at all.
func emptyProfile() recorded {
	return recorded{LinuxSeccomp: specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: new(uint(unix.EPERM)), Architectures: native(),
		Syscalls: []specs.LinuxSyscall{{Names: append(unasked(), "execve"), Action: specs.ActAllow}},
	}}
}

func (r *recorded) add(name string, used []string) {
	if len(r.Syscalls) == 0 {
		r.Syscalls = emptyProfile().Syscalls
	}
	allowed := &r.Syscalls[0]
	allowed.Names = append(slices.Clone(allowed.Names), used...)
	slices.Sort(allowed.Names)
	allowed.Names = slices.Compact(allowed.Names)
	if !slices.Contains(r.From, name) {
		r.From = append(r.From, name)
	}
}

// trim removes the oldest recorded profiles where there are too many.
func (w *Watcher) trim(ctx context.Context) {
	w.profiles.Lock()
	defer w.profiles.Unlock()
	files, err := os.ReadDir(w.config.Profiles)
	if err != nil || len(files) <= mostProfiles {
		return
	}
	age := map[string]int64{}
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			age[f.Name()] = info.ModTime().UnixNano()
		}
	}
	names := slices.SortedFunc(maps.Keys(age), func(a, b string) int { return int(min(max(age[a]-age[b], -1), 1)) })
	for _, name := range names[:len(names)-mostProfiles] {
		if err := os.Remove(filepath.Join(w.config.Profiles, name)); err != nil {
			w.config.Log.WarnContext(ctx, "old recorded profile", "err", err)
		}
	}
}

// Profiles are the recorded profiles, in the order of their names.
func (w *Watcher) Profiles(_ context.Context) ([]spec.SeccompProfile, error) {
	root, err := os.OpenRoot(w.config.Profiles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	files, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var all []spec.SeccompProfile
	for _, f := range files {
		name, isProfile := strings.CutSuffix(f.Name(), ".json")
		if r, err := readRecorded(root, f.Name()); isProfile && err == nil && len(r.Syscalls) > 0 {
			all = append(all, spec.SeccompProfile{Name: name, From: r.From, Calls: r.Syscalls[0].Names, Profile: r})
		}
	}
	return all, nil
}
