package seccomp

import (
	"bufio"
	_ "embed"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:embed syscalls.txt
var numbers string

// table is the names of system calls, by the kernel's number of the
// architecture and by their own.
type table map[uint32]map[int32]string

// architectures is the kernel's number and OCI's name of each one, by Go's.
func architectures(goarch string) (kernel uint32, oci specs.Arch) {
	switch goarch {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, specs.ArchX86_64
	case "386":
		return unix.AUDIT_ARCH_I386, specs.ArchX86
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, specs.ArchAARCH64
	case "arm":
		return unix.AUDIT_ARCH_ARM, specs.ArchARM
	case "riscv64":
		return unix.AUDIT_ARCH_RISCV64, specs.ArchRISCV64
	case "ppc64le":
		return unix.AUDIT_ARCH_PPC64LE, specs.ArchPPC64LE
	case "s390x":
		return unix.AUDIT_ARCH_S390X, specs.ArchS390X
	case "loong64":
		return unix.AUDIT_ARCH_LOONGARCH64, specs.ArchLOONGARCH64
	}
	return 0, ""
}

// family is the architectures whose programs run here, this one first.
func family() []string {
	switch runtime.GOARCH {
	case "amd64":
		return []string{"amd64", "386"}
	case "arm64":
		return []string{"arm64", "arm"}
	}
	return []string{runtime.GOARCH}
}

// readTable reads what concerns this machine.
func readTable() (table, error) {
	t := table{}
	lines := bufio.NewScanner(strings.NewReader(numbers))
	for lines.Scan() {
		var goarch, name string
		var number int32
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if _, err := fmt.Sscan(lines.Text(), &goarch, &number, &name); err != nil {
			return nil, fmt.Errorf("seccomp: table of system calls: %q: %w", lines.Text(), err)
		}
		if !slices.Contains(family(), goarch) {
			continue
		}
		kernel, _ := architectures(goarch)
		if t[kernel] == nil {
			t[kernel] = map[int32]string{}
		}
		t[kernel][number] = name
	}
	return t, lines.Err()
}

// x32 marks numbers of a second way to call on amd64.
const x32 = 0x40000000

// name of a call; a number where the call is newer than the table.
func (t table) name(arch uint32, number int32) string {
	if arch == unix.AUDIT_ARCH_X86_64 && number >= 0 {
		number &^= x32
	}
	if name := t[arch][number]; name != "" {
		return name
	}
	return fmt.Sprintf("%#x:%d", arch, number)
}

// names of all calls of this machine.
func (t table) names() []string {
	all := map[string]bool{}
	for _, of := range t {
		for _, name := range of {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// native is OCI's names of the architectures whose programs run here.
func native() []specs.Arch {
	var all []specs.Arch
	for _, goarch := range family() {
		_, oci := architectures(goarch)
		all = append(all, oci)
	}
	if runtime.GOARCH == "amd64" {
		all = append(all, specs.ArchX32)
	}
	return all
}
