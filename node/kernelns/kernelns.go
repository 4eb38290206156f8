// Package kernelns makes and keeps the kernel namespaces of pods, so that no
// process has to.
//
// The namespaces of pod <id> are files net, ipc, uts and user in the folder
// <Dir>/<id>, each with one bound on it; those it shares with the host are not
// there. The folder is the record: what is in it outlives this process and
// ends with a reboot. A folder appears under its name with everything in it.
// Names that begin with a dot are sets that nobody has yet: the next Open
// removes them.
//
// With Config.NetDir the file net is a symbolic link into that folder, where
// CNI plugins that run in pods of their own look for network namespaces, and
// people with ip netns.
//
// A few sets of fresh namespaces are kept ready while Run runs, once there has
// been a pod, so that most pods cost a rename. What is asked for in addition, a host name and
// sysctls, is written on a thread that enters them.
package kernelns

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/span"
	"berth/spec"
)

// Config says where a Set keeps namespaces and how many wait for pods.
type Config struct {
	Dir   string // empty after a reboot
	Ready int    // sets of namespaces that Run keeps ready; none when 0
	// NetDir is where network namespaces are, /run/netns for one; in Dir
	// when empty.
	NetDir string
	// Sysctls are set in each network namespace that is made.
	Sysctls map[string]string
	// Made is told of each network namespace that is ready, before a pod
	// gets it, so that it can be given a link; Gone of one that no pod will
	// have. Nil where nobody is.
	Made func(ctx context.Context, net string) error
	Gone func(net string)
	Log  *slog.Logger
}

// Want says which namespaces a pod has of its own, and what is set in them.
type Want struct {
	Net, IPC, UTS bool
	Hostname      string            // in UTS; the host's when empty
	Idmap         *Idmap            // of a user namespace that owns the others; none when nil
	Sysctls       map[string]string // of Net, IPC and UTS
}

// Idmap maps the ids in a user namespace to the host's.
type Idmap struct {
	UIDs, GIDs []spec.IDMapping
}

// Paths are where namespaces can be entered; "" for those that a pod has not.
type Paths struct {
	Net, IPC, UTS, User string
}

// Set is the namespaces of a node's pods.
type Set struct {
	cfg  Config
	own  [3]*os.File // this process's, in the order of kinds
	wake chan struct{}

	mu     sync.Mutex
	wanted bool     // there has been a pod: ready sets are worth their price
	ready  []string // folders
}

// kind is a namespace that threads enter and leave.
type kind struct {
	file string
	flag int
}

var kinds = [...]kind{{"net", unix.CLONE_NEWNET}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}}

// Open takes the folder over and removes what a crash left half made there.
func Open(ctx context.Context, cfg Config) (_ *Set, err error) {
	s := &Set{cfg: cfg, wake: make(chan struct{}, 1)}
	s.cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for i, k := range kinds {
		if s.own[i], err = os.Open("/proc/thread-self/ns/" + k.file); err != nil {
			return nil, fmt.Errorf("the node's own namespaces: %w", err)
		}
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil { //nolint:gosec // runtimes of users enter
		return nil, err
	}
	if err := s.openNetDir(); err != nil {
		return nil, err
	}
	if err := s.sweep(); err != nil {
		s.cfg.Log.WarnContext(ctx, "namespaces of a former start stay", "err", err)
	}
	return s, nil
}

// sweep removes what no pod has.
func (s *Set) sweep() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	linked := map[string]bool{}
	var failed error
	for _, e := range entries {
		dir := filepath.Join(s.cfg.Dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			failed = errors.Join(failed, removeSet(dir))
			continue
		}
		s.wanted = true
		if to, err := os.Readlink(filepath.Join(dir, "net")); err == nil {
			linked[to] = true
		}
	}
	if s.cfg.NetDir == "" {
		return failed
	}
	left, err := filepath.Glob(filepath.Join(s.cfg.NetDir, s.prefix()+"*"))
	failed = errors.Join(failed, err)
	for _, path := range left {
		if !linked[path] {
			failed = errors.Join(failed, unpin(path))
		}
	}
	return failed
}

// openNetDir makes the folder a mount that is shared, as all do who use
// /run/netns: else the first of them would hide what is in it already.
func (s *Set) openNetDir() error {
	dir := s.cfg.NetDir
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as ip netns makes it
		return err
	}
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount yet
		if err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return nil
}

// prefix tells this node's files in NetDir from those of others.
func (s *Set) prefix() string {
	sum := sha256.Sum256([]byte(s.cfg.Dir))
	return "berth-" + hex.EncodeToString(sum[:3]) + "-"
}

// Close lets go of everything but the namespaces of pods.
func (s *Set) Close() error {
	var failed error
	for dir := s.take(); dir != ""; dir = s.take() {
		failed = errors.Join(failed, s.discard(dir))
	}
	s.close()
	return failed
}

func (s *Set) close() {
	for _, ns := range s.own {
		if ns != nil {
			_ = ns.Close() // nothing was written to it
		}
	}
}

// podID becomes a folder's name.
var podID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func (s *Set) dir(id string) (string, error) {
	if !podID.MatchString(id) {
		return "", errs.New(errs.Invalid, "%q cannot name the namespaces of a pod", id)
	}
	return filepath.Join(s.cfg.Dir, id), nil
}

// Make gives a pod its namespaces, all or none. It fails with errs.Exists if
// it has some, and with errs.Invalid where a sysctl belongs to none of them.
//
// Sysctls of an interface that is not there yet wait for Finish.
func (s *Set) Make(ctx context.Context, id string, want Want) (_ Paths, err error) {
	ctx, end := span.Start(ctx, "make kernel namespaces", "pod", id)
	defer func() { end(err) }()
	dir, err := s.dir(id)
	if err != nil {
		return Paths{}, err
	}
	if err := ctx.Err(); err != nil {
		return Paths{}, err
	}
	settings, err := settingsOf(want)
	if err != nil {
		return Paths{}, err
	}
	from := ""
	if suits(want) {
		from = s.takeWhole(ctx)
		s.refill()
	}
	if from == "" {
		if from, err = s.fresh(want); err != nil {
			return Paths{}, fmt.Errorf("make kernel namespaces: %w", err)
		}
	}
	if err = s.set(from, want.Hostname, settings.early); err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	}
	if errors.Is(err, unix.EEXIST) {
		err = errs.New(errs.Exists, "pod %s has kernel namespaces already", id)
	}
	if err != nil {
		return Paths{}, errors.Join(err, s.discard(from))
	}
	made := pathsIn(dir)
	if !made.hold(want) { // else the pod would be in the node's own
		return Paths{}, errors.Join(errs.New(errs.Unavailable, "pod %s: somebody has unmounted its kernel namespaces", id), removeSet(dir))
	}
	return made, nil
}

// hold says whether all is there that is wanted.
func (p Paths) hold(want Want) bool {
	return (p.Net != "") == want.Net && (p.IPC != "") == want.IPC && (p.UTS != "") == want.UTS && (p.User != "") == (want.Idmap != nil)
}

// discard removes namespaces that no pod got.
func (s *Set) discard(dir string) error {
	if s.cfg.Gone != nil {
		s.cfg.Gone(filepath.Join(dir, "net"))
	}
	return removeSet(dir)
}

// Finish sets those of a pod's sysctls that are about interfaces which were
// not there when Make was called.
func (s *Set) Finish(ctx context.Context, id string, sysctls map[string]string) error {
	if len(sysctls) == 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	dir, err := s.dir(id)
	if err != nil {
		return err
	}
	settings, err := settingsOf(Want{Net: true, IPC: true, UTS: true, Sysctls: sysctls})
	if err != nil {
		return err
	}
	return s.set(dir, "", settings.late)
}

// Remove ends the namespaces of a pod as soon as no process is in them. None
// is no error.
func (s *Set) Remove(_ context.Context, id string) error {
	dir, err := s.dir(id)
	if err != nil {
		return err
	}
	return removeSet(dir)
}

// List names the pods that have namespaces here.
func (s *Set) List() ([]string, error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if podID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Paths are those of a pod's namespaces; errs.NotFound if it has none here.
func (s *Set) Paths(id string) (Paths, error) {
	dir, err := s.dir(id)
	if err != nil {
		return Paths{}, err
	}
	paths := pathsIn(dir)
	if paths == (Paths{}) {
		return Paths{}, errs.New(errs.NotFound, "pod %s has no kernel namespaces", id)
	}
	return paths, nil
}

func pathsIn(dir string) Paths {
	at := func(file string) string {
		path := filepath.Join(dir, file)
		if to, err := os.Readlink(path); err == nil {
			path = to
		}
		var st unix.Statfs_t
		if unix.Statfs(path, &st) != nil || st.Type != unix.NSFS_MAGIC {
			return ""
		}
		return path
	}
	return Paths{Net: at("net"), IPC: at("ipc"), UTS: at("uts"), User: at("user")}
}

// removeSet unmounts and removes a folder of namespaces; none is no error.
func removeSet(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err == nil {
			if err := errors.Join(unpin(to), os.Remove(path)); err != nil {
				return err
			}
			continue
		}
		if err := unpin(path); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unpin unmounts and removes a file with a namespace on it; none is no error.
func unpin(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// fresh makes new namespaces in a folder of their own.
func (s *Set) fresh(want Want) (dir string, err error) {
	dir = filepath.Join(s.cfg.Dir, ".new-"+rand.Text())
	if err := os.Mkdir(dir, 0o711); err != nil { //nolint:gosec // as the folder above
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeSet(dir))
		}
	}()
	if want.Idmap != nil {
		if err := s.makeOwned(dir, want); err != nil {
			return "", err
		}
	} else if err := s.makePlain(dir, want); err != nil {
		return "", err
	}
	return dir, nil
}
