// Package vm boots small QEMU guests under software emulation, so that tests
// meet what this machine does not have: cgroup v2, other kernels, a reboot, a
// power cut.
//
// A guest is a root disk with busybox, the programs that a test names and the
// libraries they need, on an ext4 with a journal; and one of Debian's cloud
// kernels, unpacked by setup.sh. It runs /init.sh of the test at every boot
// and talks through its serial console. A disk outlives the guest, so that
// the next boot finds what the last one left.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Kernel is a series that setup.sh fetches.
type Kernel string

// The kernels.
const (
	Linux61  Kernel = "6.1"
	Linux612 Kernel = "6.12"
)

// modules are loaded by every guest where they are not built in.
var modules = []string{
	"virtio_pci", "virtio_blk", "overlay", "bfq", "veth", "bridge", "tun", "erofs", "loop", "fuse",
	"nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat", "nft_masq", "nft_nat", "nft_ct", "nft_redir", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
	"nft_fib", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_numgen", "nf_conntrack_netlink", "br_netfilter",
	"unix_diag", "tcp_diag", "udp_diag", "af_packet_diag", "netlink_diag", "nft_compat", "xt_mark", // CRIU and its iptables ask for these
}

const guestInit = `#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox mkdir -p /dev/pts /dev/shm /dev/mqueue
/bin/busybox ln -s /proc/self/fd /dev/fd
/bin/busybox ln -s fd/0 /dev/stdin
/bin/busybox ln -s fd/1 /dev/stdout
/bin/busybox ln -s fd/2 /dev/stderr
/bin/busybox mount -t mqueue mqueue /dev/mqueue 2>/dev/null
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox mount -t tmpfs shm /dev/shm
/bin/busybox mount -t cgroup2 cgroup /sys/fs/cgroup
/bin/busybox mount -t securityfs security /sys/kernel/security 2>/dev/null
for m in $(/bin/busybox cat /modules.list); do /bin/busybox insmod /modules/$m 2>/dev/null; done
/bin/busybox ip link set lo up
echo "guest: up"
/bin/busybox sh /init.sh
echo "guest: init.sh ended with $?"
/bin/busybox sync
/bin/busybox poweroff -f
`

// The first root: it loads what the disk needs and moves on to it.
const bootInit = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for m in $(/bin/busybox cat /modules.list); do /bin/busybox insmod /modules/$m 2>/dev/null; done
n=0
while ! [ -b /dev/vda ] && [ $n -lt 100 ]; do /bin/busybox usleep 50000; n=$((n+1)); done
/bin/busybox mount -t ext4 /dev/vda /disk || echo "guest: no disk"
/bin/busybox mount --move /dev /disk/dev
exec /bin/busybox switch_root /disk /sbin/init
`

// Disk is a guest's root file system.
type Disk struct{ path string }

// NewDisk makes a disk with the given files (path in the guest → path here;
// programs bring their shared libraries) and script as /init.sh. It skips the
// test where QEMU or the kernels are missing.
func NewDisk(t *testing.T, megabytes int, script string, files map[string]string) *Disk {
	t.Helper()
	for _, program := range []string{"qemu-system-x86_64", "mkfs.ext4", "debugfs", "cpio", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			Missing(t, program)
		}
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "modules", "usr/bin", "usr/sbin", "var/lib", "var/log"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	write(t, root, "sbin/init", guestInit, 0o755)
	write(t, root, "init.sh", script, 0o755)
	write(t, root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)
	write(t, root, "etc/group", "root:x:0:\n", 0o644)
	busybox(t, root)
	for guest, host := range files {
		install(t, root, guest, host)
	}
	d := &Disk{filepath.Join(t.TempDir(), "disk.img")}
	run(t, "truncate", "-s", fmt.Sprintf("%dM", megabytes), d.path)
	run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "verity", "-d", root, "-E", "lazy_itable_init=1,lazy_journal_init=1", d.path)
	return d
}

// Guest is a running machine.
type Guest struct {
	cmd     *exec.Cmd
	console io.Writer
	asked   int // scripts that Try has sent
	copied  sync.WaitGroup

	mu   sync.Mutex
	more *sync.Cond
	out  strings.Builder
	gone bool
}

// Boot starts a guest on disk, and waits until it has. It is ended with the
// test. Emulated kernels crash now and then while they boot: then it is booted
// again.
func Boot(t *testing.T, kernel Kernel, disk *Disk, arguments string) *Guest {
	t.Helper()
	vmlinuz := filepath.Join(cacheDir(t), string(kernel), "vmlinuz")
	if _, err := os.Stat(vmlinuz); err != nil {
		Missing(t, "the "+string(kernel)+" kernel")
	}
	placeModules(t, disk, kernel)
	first := initrd(t, kernel)
	for range 2 {
		if g := boot(t, vmlinuz, first, disk, arguments); g.saw(0, up, patience) {
			return g
		} else {
			g.PowerCut()
			t.Logf("the guest did not come up, so it is booted again; it had said:\n%s", g.Output())
		}
	}
	g := boot(t, vmlinuz, first, disk, arguments)
	g.Wait(t, up, patience)
	return g
}

// up is what a guest prints before it runs /init.sh.
const up = "guest: up\n"

func boot(t *testing.T, vmlinuz, initrd string, disk *Disk, arguments string) *Guest {
	t.Helper()
	g := &Guest{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), "qemu-system-x86_64", //nolint:gosec // a test's own command
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-M", "q35", "-m", "1024", "-no-reboot",
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-net", "none",
		"-drive", "file="+disk.path+",if=virtio,format=raw,cache=writethrough",
		"-kernel", vmlinuz, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init "+arguments)}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // tests that are ended end it
	g.more = sync.NewCond(&g.mu)
	stdout, err := g.cmd.StdoutPipe()
	must(t, err)
	g.console, err = g.cmd.StdinPipe()
	must(t, err)
	g.cmd.Stderr = g.cmd.Stdout
	must(t, g.cmd.Start())
	g.copied.Go(func() { g.read(stdout) })
	t.Cleanup(g.PowerCut)
	return g
}

func (g *Guest) read(console io.Reader) {
	lines := bufio.NewReader(console)
	for {
		line, err := lines.ReadString('\n')
		g.mu.Lock()
		g.out.WriteString(strings.TrimRight(line, "\r\n") + "\n")
		g.gone = err != nil
		g.more.Broadcast()
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Wait waits until the guest has printed text, and fails the test when it
// ends or limit passes before.
func (g *Guest) Wait(t *testing.T, text string, limit time.Duration) {
	t.Helper()
	g.wait(t, 0, text, limit)
}

func (g *Guest) wait(t *testing.T, from int, text string, limit time.Duration) {
	t.Helper()
	if g.saw(from, text, limit) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t.Fatalf("the guest did not print %q within %v (ended: %v):\n%s", text, limit, g.gone, g.out.String())
}

// saw waits until the guest has printed text, and says false when it ends or
// limit passes before.
func (g *Guest) saw(from int, text string, limit time.Duration) bool {
	late := false
	timer := time.AfterFunc(limit, func() { g.mu.Lock(); late = true; g.more.Broadcast(); g.mu.Unlock() })
	defer timer.Stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !strings.Contains(g.out.String()[from:], text) {
		if g.gone || late {
			return false
		}
		from = max(from, g.out.Len()-len(text)) // the rest was looked at
		g.more.Wait()
	}
	return true
}

// WaitAgain is Wait for text that the guest prints from now on.
func (g *Guest) WaitAgain(t *testing.T, text string, limit time.Duration) {
	t.Helper()
	g.wait(t, len(g.Output()), text, limit)
}

// WaitEnd waits until the guest has powered off.
func (g *Guest) WaitEnd(t *testing.T, limit time.Duration) {
	t.Helper()
	g.Wait(t, "guest: init.sh ended with", limit)
	timer := time.AfterFunc(30*time.Second, g.PowerCut) // it hangs while going down
	defer timer.Stop()
	g.copied.Wait()
	_ = g.cmd.Wait()
}

// Output is what the guest has printed.
func (g *Guest) Output() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.out.String()
}

// PowerCut ends the guest at once, as a plug that is pulled.
func (g *Guest) PowerCut() {
	_ = g.cmd.Process.Kill()
	g.copied.Wait()
	_ = g.cmd.Wait()
}

// initrd makes the first root: busybox, the modules in loading order, init.
func initrd(t *testing.T, kernel Kernel) string {
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "disk", "modules"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	write(t, root, "init", bootInit, 0o755)
	busybox(t, root)
	copyModules(t, root, kernel, []string{"virtio_pci", "virtio_blk", "ext4"})
	path := filepath.Join(t.TempDir(), "initrd")
	run(t, "sh", "-c", "cd "+root+" && find . | cpio --quiet -o -H newc > "+path)
	return path
}

// placeModules puts the kernel's modules on the disk, with debugfs: no mount.
func placeModules(t *testing.T, disk *Disk, kernel Kernel) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "modules"), 0o755))
	copyModules(t, root, kernel, modules)
	var script bytes.Buffer
	entries, err := os.ReadDir(filepath.Join(root, "modules"))
	must(t, err)
	for _, e := range entries {
		fmt.Fprintf(&script, "rm /modules/%s\nwrite %s /modules/%s\n", e.Name(), filepath.Join(root, "modules", e.Name()), e.Name())
	}
	fmt.Fprintf(&script, "rm /modules.list\nwrite %s /modules.list\n", filepath.Join(root, "modules.list"))
	// A power cut leaves a journal to replay, which debugfs must not overtake.
	_ = exec.CommandContext(t.Context(), "e2fsck", "-p", "-E", "journal_only", disk.path).Run() //nolint:gosec // a test's own command
	cmd := exec.CommandContext(t.Context(), "debugfs", "-w", "-f", "-", disk.path)              //nolint:gosec // a test's own command
	cmd.Stdin = &script
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
}

// copyModules copies modules and what they depend on, and lists them in
// loading order. Those built into the kernel are left out.
func copyModules(t *testing.T, root string, kernel Kernel, names []string) {
	base := filepath.Join(cacheDir(t), string(kernel))
	deps, err := os.ReadFile(filepath.Join(base, "modules.dep"))
	must(t, err)
	byName := map[string][]string{} // name → its file, then its dependencies, the deepest last
	for line := range strings.Lines(string(deps)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		byName[strings.TrimSuffix(filepath.Base(file), ".ko")] = append([]string{file}, strings.Fields(rest)...)
	}
	var list []string
	for _, name := range names {
		for _, file := range slices.Backward(byName[name]) {
			if at := filepath.Base(file); !slices.Contains(list, at) {
				list = append(list, at)
				run(t, "cp", filepath.Join(base, file), filepath.Join(root, "modules", at))
			}
		}
	}
	write(t, root, "modules.list", strings.Join(list, "\n")+"\n", 0o644)
}

func busybox(t *testing.T, root string) {
	path, err := exec.LookPath("busybox")
	must(t, err)
	run(t, "cp", "-L", path, filepath.Join(root, "bin/busybox"))
	list, err := exec.CommandContext(t.Context(), path, "--list").Output() //nolint:gosec // a test's own command
	must(t, err)
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
		}
	}
}

// install copies a file, and the shared libraries of a program.
func install(t *testing.T, root, guest, host string) {
	to := filepath.Join(root, guest)
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	_ = os.Remove(to) // a busybox applet of that name
	run(t, "cp", "-L", host, to)
	if info, err := os.Stat(host); err != nil || info.Mode()&0o111 == 0 {
		return // no program
	}
	libraries, err := exec.CommandContext(t.Context(), "ldd", host).Output() //nolint:gosec // a test's own command
	if err != nil {
		return // not a dynamic program
	}
	for line := range strings.Lines(string(libraries)) {
		for field := range strings.FieldsSeq(line) {
			if strings.HasPrefix(field, "/") {
				must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(field)), 0o755))
				run(t, "cp", "-L", field, filepath.Join(root, field))
			}
		}
	}
}

// Missing skips a test for lack of something; in CI nothing may be lacking.
func Missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing, and CI has to have it: run `make setup`", what)
	}
	t.Skipf("%s is missing: run `make setup`", what)
}

func cacheDir(t *testing.T) string {
	dir, err := filepath.Abs("../../.cache/vm")
	must(t, err)
	return dir
}

func write(t *testing.T, root, name, content string, mode os.FileMode) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(root, name), []byte(content), mode))
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
