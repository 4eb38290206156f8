package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"berth/base/undo"
	"berth/node/bundle"
	"berth/node/snapshot"
	"berth/spec"
)

// roomToWrite is how much a container may write into the files that the node
// has written for it.
const roomToWrite = 1 << 20

// etcDir is where those files are. They have a file system of their own: the
// container may write to them, and is not to fill that of the node's state,
// which all share.
func (s *Set) etcDir(id string) string { return filepath.Join(s.bundleDir(id), "etc") }

// writeFiles makes hosts, resolv.conf and hostname, or takes those of the
// container whose network is shared.
func (s *Set) writeFiles(ctx context.Context, in *bundle.Input, u *undo.Stack) error {
	c := &in.Container
	dir := s.etcDir(c.ID)
	other, shared := strings.CutPrefix(c.Config.Network.Mode, sharedPrefix)
	if shared {
		dir = s.etcDir(other)
	}
	in.Hosts, in.ResolvConf, in.HostnameFile = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hostname")
	if shared {
		owner, err := s.find(other)
		if err != nil {
			return err
		}
		c.Config.Hostname = bundle.Hostname(*owner.get())
		return nil
	}
	hosts, resolv := s.nameFiles(c)
	if err := s.mountEtc(ctx, c.ID, roomToWrite+len(hosts)+len(resolv)); err != nil {
		return err
	}
	u.Add("unmount the container's files", func(ctx context.Context) error { return s.dropEtc(ctx, c.ID) })
	hostname := c.Config.Hostname
	if hostname == "" { // it has the host's
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	return errors.Join(writeEtc(in.Hosts, hosts), writeEtc(in.ResolvConf, resolv), writeEtc(in.HostnameFile, []byte(hostname+"\n")))
}

// rewriteNames writes hosts and resolv.conf of a container that runs.
func (s *Set) rewriteNames(c *spec.Container) error {
	hosts, resolv := s.nameFiles(c)
	dir := s.etcDir(c.ID)
	return errors.Join(writeEtc(filepath.Join(dir, "hosts"), hosts), writeEtc(filepath.Join(dir, "resolv.conf"), resolv))
}

func (s *Set) nameFiles(c *spec.Container) (hosts, resolv []byte) {
	hosts = s.Networks.Hosts(c.Config.Network, c.Config.Hostname, c.Config.Domainname, c.Networks)
	return hosts, s.Networks.ResolvConf(c.Config.Network, c.Networks)
}

// writeEtc writes in place: the file may be mounted.
func writeEtc(file string, data []byte) error {
	return os.WriteFile(file, data, 0o644) //nolint:gosec // the container's users read it
}

func (s *Set) mountEtc(ctx context.Context, id string, size int) error {
	dir := s.etcDir(id)
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // a user namespace's root passes through
		return err
	}
	etc := snapshot.Mount{Type: "tmpfs", Source: "etc", Options: []string{
		"nosuid", "nodev", "noexec", "mode=711", "nr_inodes=16", "size=" + strconv.Itoa(size),
	}}
	if err := s.Roots.Mount(ctx, []snapshot.Mount{etc}, dir); err != nil {
		return fmt.Errorf("a file system for the container's files: %w", err)
	}
	return nil
}

func (s *Set) dropEtc(ctx context.Context, id string) error {
	return s.Roots.Unmount(ctx, s.etcDir(id))
}
