package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// unasked are calls that runtimes make after they have loaded the filter and
// before they have told of its descriptor, when nobody answers yet. They are
// what Go programs need to write to a pipe, to get memory and to run threads.
func unasked() []string {
	return []string{
		"brk", "clock_gettime", "clock_nanosleep", "clone", "close", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait",
		"eventfd2", "exit", "exit_group", "fcntl", "fcntl64", "futex", "futex_time64", "getpid", "gettid", "madvise", "mmap", "mmap2",
		"mprotect", "munmap", "nanosleep", "prctl", "read", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask",
		"rt_sigreturn", "sched_getaffinity", "sched_yield", "set_robust_list", "sigaltstack", "tgkill", "timer_create",
		"timer_delete", "timer_settime", "write",
	}
}

// never may a runtime be asked to have write notified: it refuses.
const never = "write"

func forbids(action specs.LinuxSeccompAction) bool {
	switch action {
	case specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread:
		return true
	}
	return false
}

// rewrite has the kernel ask where profile forbids, or about all for a
// recording, where profile may be nil.
func (w *Watcher) rewrite(m mode, profile *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	if profile == nil {
		profile = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: native()}
	}
	asking := *profile
	asking.Syscalls = nil
	unnamed := w.unnamed(m, profile)
	for _, rule := range profile.Syscalls {
		switch {
		case m == record:
			rule.Names = among(rule.Names, unasked())
			asking.Syscalls = withRule(asking.Syscalls, rule)
		case forbids(rule.Action):
			kept := rule
			kept.Names = among(rule.Names, []string{never})
			asking.Syscalls = withRule(asking.Syscalls, kept)
			rule.Names, rule.Action, rule.ErrnoRet = without(rule.Names, []string{never}), specs.ActNotify, nil
			asking.Syscalls = withRule(asking.Syscalls, rule)
		default:
			asking.Syscalls = append(asking.Syscalls, rule)
		}
	}
	asking.Syscalls = withRule(asking.Syscalls, specs.LinuxSyscall{Names: unnamed, Action: specs.ActNotify})
	return &asking
}

// unnamed is the calls that are asked about though no rule says so.
func (w *Watcher) unnamed(m mode, profile *specs.LinuxSeccomp) []string {
	if m == record {
		return without(w.table.names(), unasked())
	}
	if !forbids(profile.DefaultAction) {
		return nil
	}
	names := without(w.table.names(), unasked())
	for _, rule := range profile.Syscalls {
		names = without(names, rule.Names)
	}
	return names
}

func withRule(rules []specs.LinuxSyscall, rule specs.LinuxSyscall) []specs.LinuxSyscall {
	if len(rule.Names) == 0 {
		return rules
	}
	return append(rules, rule)
}

func among(names, chosen []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !slices.Contains(chosen, name) })
}

func without(names, left []string) []string {
	drop := make(map[string]bool, len(left))
	for _, name := range left {
		drop[name] = true
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return drop[name] })
}

// verdict is whether a profile lets one call be made, and the error of one that
// it does not. Arguments are numbers; what they point at no filter sees.
func verdict(profile *specs.LinuxSeccomp, name string, args [6]uint64) (unix.Errno, bool) {
	if profile == nil {
		return 0, true
	}
	for _, conditional := range []bool{true, false} {
		for _, rule := range profile.Syscalls {
			if (len(rule.Args) > 0) == conditional && slices.Contains(rule.Names, name) && matches(rule.Args, args) {
				return outcome(rule.Action, rule.ErrnoRet, profile.DefaultErrnoRet)
			}
		}
	}
	return outcome(profile.DefaultAction, nil, profile.DefaultErrnoRet)
}

// refusal is the error of a call that the kernel asks about because profile
// forbids it.
func refusal(profile *specs.LinuxSeccomp, name string, args [6]uint64) unix.Errno {
	for _, rule := range profile.Syscalls {
		if forbids(rule.Action) && slices.Contains(rule.Names, name) && matches(rule.Args, args) {
			no, _ := outcome(rule.Action, rule.ErrnoRet, profile.DefaultErrnoRet)
			return no
		}
	}
	if forbids(profile.DefaultAction) {
		no, _ := outcome(profile.DefaultAction, nil, profile.DefaultErrnoRet)
		return no
	}
	return unix.ENOSYS
}

// outcome of an action. A process that was to be killed finds that there is no
// such call.
func outcome(action specs.LinuxSeccompAction, own, usual *uint) (no unix.Errno, may bool) {
	switch action {
	case specs.ActAllow, specs.ActLog, specs.ActNotify, specs.ActTrace:
		return 0, true
	case specs.ActErrno:
		for _, number := range []*uint{own, usual} {
			if number != nil {
				return unix.Errno(*number), false
			}
		}
		return unix.EPERM, false
	}
	return unix.ENOSYS, false
}

// matches says whether all conditions hold, or any where two are about the same
// argument: runtimes make a rule of each of these.
func matches(conditions []specs.LinuxSeccompArg, args [6]uint64) bool {
	seen, choices, held := map[uint]bool{}, false, 0
	for _, c := range conditions {
		choices = choices || seen[c.Index]
		seen[c.Index] = true
		if compare(c, args) {
			held++
		}
	}
	return held == len(conditions) || choices && held > 0
}

func compare(c specs.LinuxSeccompArg, args [6]uint64) bool {
	if c.Index >= uint(len(args)) {
		return false
	}
	switch value := args[c.Index]; c.Op {
	case specs.OpNotEqual:
		return value != c.Value
	case specs.OpLessThan:
		return value < c.Value
	case specs.OpLessEqual:
		return value <= c.Value
	case specs.OpEqualTo:
		return value == c.Value
	case specs.OpGreaterEqual:
		return value >= c.Value
	case specs.OpGreaterThan:
		return value > c.Value
	case specs.OpMaskedEqual:
		return value&c.Value == c.ValueTwo
	}
	return false
}
