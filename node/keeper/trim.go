package keeper

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trimSoon gives memory back once a burst of launches is over. Call it with
// s.mu held.
func (s *server) trimSoon() {
	if s.trim == nil {
		s.trim = time.AfterFunc(time.Second, func() {
			s.mu.Lock()
			busy := s.launching > 0 // the end of that launch will ask again
			s.mu.Unlock()
			if !busy {
				trim()
			}
		})
		return
	}
	s.trim.Reset(time.Second)
}

// trim lets go of all memory that is not needed at rest. The program is far
// larger than the keeper, and its packages touch much of it when they start.
func trim() {
	debug.FreeOSMemory()
	unmapProgram()
}

// unmapProgram drops the pages of the program file from this process, not
// from the page cache: the few that are used come back by a minor fault each.
// Only mappings that hold nothing of our own are touched.
func unmapProgram() {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	var from, to uintptr
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		name, rest, _ := strings.Cut(line, " ")
		switch {
		case !strings.HasSuffix(name, ":"): // the head of a mapping
			readOnly := strings.HasPrefix(rest, "r--p") || strings.HasPrefix(rest, "r-xp")
			if _, err := fmt.Sscanf(name, "%x-%x", &from, &to); err != nil || !readOnly || !strings.HasSuffix(rest, " "+exe) {
				from, to = 0, 0
			}
		case name == "Anonymous:" && strings.TrimSpace(rest) == "0 kB" && to > from:
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
