package pod

import (
	"cmp"
	"path/filepath"
	"strings"

	"berth/base/errs"
	"berth/node/bundle"
	"berth/node/kernelns"
	"berth/node/network"
	"berth/node/snapshot"
	"berth/spec"
)

// check fails with errs.Invalid where the configuration can never work.
func check(c *spec.PodConfig) error {
	switch {
	case c.Name == "" || c.Namespace == "" || c.UID == "":
		return errs.New(errs.Invalid, "a pod needs a name, a namespace and a uid")
	case len(c.Hostname) > hostnameLength || strings.ContainsRune(c.Hostname, 0):
		return errs.New(errs.Invalid, "hostname %.100q: want up to %d bytes", c.Hostname, hostnameLength)
	case c.LogDir != "" && !filepath.IsAbs(c.LogDir):
		return errs.New(errs.Invalid, "log directory %q: want an absolute path", c.LogDir)
	}
	ns := &c.Security.Namespaces
	for what, mode := range map[string]spec.NamespaceMode{"network": ns.Network, "ipc": ns.IPC} {
		if mode != "" && mode != spec.NamespacePod && mode != spec.NamespaceNode {
			return errs.New(errs.Invalid, "%s namespace %q of a pod: want pod or node", what, mode)
		}
	}
	_, err := bundle.PodIdmap(ns.User)
	return err
}

// hostnameLength is what the kernel takes.
const hostnameLength = 64

// checkContainer is check for a container.
func checkContainer(pod *spec.PodConfig, c *spec.PodContainerConfig) error {
	switch {
	case c.Name == "":
		return errs.New(errs.Invalid, "a container needs a name")
	case c.Image == "":
		return errs.New(errs.Invalid, "container %s: an image is needed", c.Name)
	case pod.LogDir != "" && c.LogPath != "" && !filepath.IsLocal(strings.TrimLeft(c.LogPath, "/")):
		return errs.New(errs.Invalid, "container %s: log path %s leads out of the pod's log directory", c.Name, c.LogPath)
	case c.LogPath != "" && pod.LogDir == "" && !filepath.IsAbs(c.LogPath):
		return errs.New(errs.Invalid, "container %s: log path %s is relative, and its pod has no log directory", c.Name, c.LogPath)
	}
	return nil
}

// logPath is where a container's log is; "" where it has none.
func logPath(pod *spec.PodConfig, c *spec.PodContainerConfig) string {
	switch {
	case c.LogPath == "":
		return ""
	case filepath.IsAbs(c.LogPath) && pod.LogDir == "":
		return filepath.Clean(c.LogPath)
	}
	return filepath.Join(pod.LogDir, c.LogPath)
}

// wanted are the namespaces that a pod has of its own. On the host's network
// it also has the host's name.
func wanted(c *spec.PodConfig) kernelns.Want {
	ns := &c.Security.Namespaces
	own := ns.Network != spec.NamespaceNode
	want := kernelns.Want{
		Net: own, UTS: own, IPC: ns.IPC != spec.NamespaceNode,
		Sysctls: c.Sysctls,
	}
	if own {
		want.Hostname = hostname(c)
	}
	if ns.User != nil && ns.User.Mode == spec.NamespacePod {
		want.Idmap = &kernelns.Idmap{UIDs: ns.User.UIDs, GIDs: ns.User.GIDs}
	}
	return want
}

// hostname is that of a pod on a network of its own.
func hostname(c *spec.PodConfig) string {
	name := cmp.Or(c.Hostname, c.Name)
	return name[:min(len(name), hostnameLength)]
}

func networkRequest(p *spec.Pod) network.PodRequest {
	c := &p.Config
	return network.PodRequest{
		ID: p.ID, Name: c.Name, Namespace: c.Namespace, UID: c.UID, NetNS: p.NetNS, CgroupParent: c.CgroupParent,
		Ports: c.Ports, Annotations: c.Annotations, DNS: c.DNS,
	}
}

// idmap is that of the pod's user namespace; nil where it has the host's.
func idmap(c *spec.PodConfig) *bundle.Idmap {
	m, err := bundle.PodIdmap(c.Security.Namespaces.User)
	if err != nil {
		return nil // it was checked before the pod was made
	}
	return m
}

// rootLabels are for the snapshots of the pod's containers.
func rootLabels(p *spec.Pod, container string) map[string]string {
	labels := map[string]string{}
	if u := p.Config.Security.Namespaces.User; u != nil && u.Mode == spec.NamespacePod {
		labels = snapshot.IDMapLabels(snapshotMaps(u.UIDs), snapshotMaps(u.GIDs))
	}
	labels[containerLabel], labels[podLabel] = container, p.ID
	return labels
}

// Labels of snapshots that this room has made.
const (
	podLabel       = "berth.pod"
	containerLabel = "berth.podcontainer"
)

func snapshotMaps(list []spec.IDMapping) []snapshot.IDMap {
	var out []snapshot.IDMap
	for _, m := range list {
		out = append(out, snapshot.IDMap{Container: m.Container, Host: m.Host, Size: m.Length})
	}
	return out
}

// cgroupPath is where a container of the pod is in every hierarchy.
func (s *Set) cgroupPath(p *spec.PodConfig, id string) string {
	return bundle.CgroupPath(cmp.Or(p.CgroupParent, s.CgroupParent), id)
}
