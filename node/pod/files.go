package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth/base/span"
	"berth/spec"
)

// The pod's files and folders that its containers see.
const (
	etc          = "etc"
	resolvConf   = etc + "/resolv.conf"
	hosts        = etc + "/hosts"
	hostnameFile = etc + "/hostname"
	shm          = "shm"
)

// roomToWrite is how much containers may write into the files of their pod.
const roomToWrite = 1 << 20

func (s *Set) podPath(p *pod, name string) string { return filepath.Join(s.db.podDir(p.id), name) }

// makeFolder makes the folder of the pod. Only root gets in, to what its
// containers share and to programs of images that run as root; and the root of
// its user namespace, whom the machine does not tell from its other users.
func (s *Set) makeFolder(p *pod) error {
	dir, mode := s.db.podDir(p.id), fs.FileMode(0o700)
	config := p.get().Config
	if idmap(&config) != nil {
		mode = 0o711
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil { //nolint:gosec // as said
		return fmt.Errorf("make the folder of the pod: %w", err)
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the folder of the pod: %w", err)
	}
	return nil
}

// writeFiles writes them. A container of Kubernetes has a hosts of its own
// mounted over that of the pod.
func (s *Set) writeFiles(p *pod) error {
	view := p.get()
	resolv, err := resolvText(view.Config.DNS)
	if err != nil {
		return err
	}
	names, name, err := s.hostsText(&view)
	if err != nil {
		return err
	}
	if err := s.mountEtc(p, roomToWrite+len(resolv)+len(names)); err != nil {
		return err
	}
	for file, data := range map[string][]byte{resolvConf: resolv, hosts: names, hostnameFile: []byte(name + "\n")} {
		if err := os.WriteFile(s.podPath(p, file), data, 0o644); err != nil { //nolint:gosec // everybody in there reads it
			return err
		}
	}
	return nil
}

// mountEtc gives the files a file system of their own: containers may write to
// them, and are not to fill that of the node's state, which all share.
func (s *Set) mountEtc(p *pod, size int) error {
	dir := s.podPath(p, etc)
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // a user namespace's root passes through
		return err
	}
	options := fmt.Sprintf("mode=711,nr_inodes=16,size=%d", size)
	if label := p.get().MountLabel; label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	if err := unix.Mount("etc", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("a file system for the files of the pod: %w", err)
	}
	return nil
}

func resolvText(dns *spec.PodDNS) ([]byte, error) {
	if dns == nil {
		data, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b bytes.Buffer
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.Bytes(), nil
}

// hostsText is the hosts file, and the name of the machine that the pod is.
func (s *Set) hostsText(p *spec.Pod) ([]byte, string, error) {
	if p.NetNS == "" {
		data, err := os.ReadFile("/etc/hosts")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return data, s.Host.Hostname, err
	}
	name := hostname(&p.Config)
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	for _, ip := range p.IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	return b.Bytes(), name, nil
}

// shmSize is what docker and Kubernetes give to /dev/shm.
const shmSize = "size=67108864"

// mountShm makes the /dev/shm that goes with the pod's own IPC namespace.
func (s *Set) mountShm(ctx context.Context, p *pod) (err error) {
	view := p.get()
	if view.IPCNS == "" {
		return nil
	}
	_, end := span.Start(ctx, "mount shm")
	defer func() { end(err) }()
	dir := s.podPath(p, shm)
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // a user namespace's root passes through
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	options := "mode=1777," + shmSize
	if m := idmap(&view.Config); m != nil {
		options += fmt.Sprintf(",uid=%d,gid=%d", m.UIDs[0].HostID, m.GIDs[0].HostID)
	}
	if view.MountLabel != "" {
		options += fmt.Sprintf(",context=%q", view.MountLabel)
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	return nil
}

// shmOf is where the containers' /dev/shm is; "" on the host's IPC namespace.
func (s *Set) shmOf(p *pod) string {
	if p.get().IPCNS == "" {
		return ""
	}
	return s.podPath(p, shm)
}

// unmountAll takes away whatever is mounted at a place, one above the other.
func unmountAll(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
	}
}

// unmountBelow makes sure that what is about to be deleted holds nothing that
// is mounted.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unmountAll(m.Mountpoint); err != nil {
			return err
		}
	}
	return nil
}

// discardFolder removes the folder of a pod that there is not.
func (s *Set) discardFolder(id string) error {
	dir := s.db.podDir(id)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
