package stats

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// passes is what the passes of a Reader have in common.
type passes struct {
	buffers   sync.Pool // of *files
	pressures string    // the hierarchy that keeps pressure; "" where none does
	members   string    // the hierarchy that says whose processes are whose
	sized     bool      // the size of a folder of descriptors is their number

	mu      sync.Mutex
	known   map[int]socketCount // by pid
	devices map[device]string   // their names
}

// device is the number of one.
type device struct{ major, minor uint64 }

func (p *passes) prepare(root string, unified bool) {
	p.pressures, p.members = findPressures(root, unified), root
	if !unified {
		for _, controller := range []string{"systemd", "memory", "pids"} {
			dir := filepath.Join(root, controller)
			if _, err := os.Stat(dir); err == nil {
				p.members = dir
			}
		}
	}
	var st unix.Stat_t
	p.sized = unix.Stat("/proc/self/fd", &st) == nil && st.Size > 0
	p.known = map[int]socketCount{}
}

// States are how many processes are in each state.
type States struct{ Running, Sleeping, Waiting, Stopped, Zombie uint64 }

func (s *States) add(letter byte) {
	switch letter {
	case 'R':
		s.Running++
	case 'D':
		s.Waiting++ // for a disk, and cannot be woken
	case 'T', 't':
		s.Stopped++
	case 'Z', 'X':
		s.Zombie++
	default:
		s.Sleeping++
	}
}

// processes looks at those of the cgroup and of all below it.
func (p *Pass) processes(u *Usage, cgroup string, first int, want Parts) {
	p.pids = p.pids[:0]
	if u.Tasks.Usage == 1 && first > 0 {
		p.pids = append(p.pids, first) // there is nobody else
	} else {
		p.collect(filepath.Join(p.r.members, cgroup), 0)
	}
	u.Processes.Count = uint64(len(p.pids))
	if want&Insides == 0 {
		return
	}
	for _, pid := range p.pids {
		p.inside(u, pid)
	}
	if first > 0 {
		var limit unix.Rlimit
		if unix.Prlimit(first, unix.RLIMIT_NOFILE, nil, &limit) == nil {
			u.Processes.FilesLimit = limit.Cur
		}
	}
}

// deepest bounds how deep cgroups below a container's are followed.
const deepest = 16

func (p *Pass) collect(dir string, depth int) {
	for field := range bytes.FieldsSeq(p.f.read(dir + "/cgroup.procs")) {
		if pid, ok := digits(field); ok && pid > 0 {
			p.pids = append(p.pids, int(pid))
		}
	}
	var st unix.Stat_t
	if depth == deepest || unix.Stat(dir, &st) != nil || st.Nlink == 2 { // no folder is in it
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // it is going
	}
	for _, e := range entries {
		if e.IsDir() {
			p.collect(filepath.Join(dir, e.Name()), depth+1)
		}
	}
}

// inside looks at one process, which may end meanwhile.
func (p *Pass) inside(u *Usage, pid int) {
	dir := p.r.proc + "/" + strconv.Itoa(pid)
	if stat := p.f.read(dir + "/stat"); stat != nil {
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 && i+2 < len(stat) {
			u.Processes.States.add(stat[i+2])
		}
	}
	files, ok := p.descriptors(dir + "/fd")
	if !ok {
		return
	}
	u.Processes.Files += files
	u.Processes.Sockets += p.sockets(pid, dir+"/fd", files)
}

func (p *Pass) descriptors(dir string) (n uint64, ok bool) {
	if p.r.sized {
		var st unix.Stat_t
		if unix.Stat(dir, &st) != nil {
			return 0, false
		}
		return uint64(st.Size), true
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	return uint64(len(names)), err == nil
}

// socketCount is how many of a process's descriptors were sockets.
type socketCount struct {
	files, sockets uint64
	at             time.Time
}

// socketsKnown is how long a count of sockets serves while the number of
// descriptors stays the same.
const socketsKnown = 10 * time.Second

// sockets counts those of a process. To look at each descriptor is dear, so it
// is done again only when their number has changed or some time has passed, and
// for so many of them in a pass.
func (p *Pass) sockets(pid int, dir string, files uint64) uint64 {
	now := time.Now()
	p.r.mu.Lock()
	known, counted := p.r.known[pid]
	p.r.mu.Unlock()
	fresh := counted && known.files == files && now.Sub(known.at) < socketsKnown
	if fresh || p.links <= 0 && counted {
		return known.sockets
	}
	p.links -= int(files) //nolint:gosec // a process has no more than a billion
	n := countSockets(dir)
	p.r.remember(pid, socketCount{files, n, now})
	return n
}

// rememberedProcesses is how many there may be before the old ones are dropped.
const rememberedProcesses = 1024

func (p *passes) remember(pid int, c socketCount) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || len(p.known) >= rememberedProcesses {
		kept := make(map[int]socketCount, len(p.known))
		for pid, old := range p.known {
			if c.at.Sub(old.at) < 3*socketsKnown {
				kept[pid] = old
			}
		}
		p.known = kept
	}
	p.known[pid] = c
}

func countSockets(dir string) (n uint64) {
	d, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer d.Close()
	var target [8]byte
	for {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			// "socket:[123]"
			if size, err := unix.Readlinkat(int(d.Fd()), name, target[:]); err == nil && strings.HasPrefix(string(target[:size]), "socket:[") {
				n++
			}
		}
		if err != nil || len(names) == 0 {
			return n
		}
	}
}
