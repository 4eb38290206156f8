package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/spec"
)

// attachByPlugins runs ADD. That it does is on record before, with the
// configuration, so that DEL is run whatever happens meanwhile.
func (s *Set) attachByPlugins(ctx context.Context, req PodRequest, list *libcni.NetworkConfigList, ports []spec.PortMapping) (*attachment, error) {
	if err := s.clearSeat(req.NetNS); err != nil {
		return nil, err
	}
	if len(ports) > 0 && !capable(list, "portMappings") {
		return nil, errs.New(errs.Unsupported, "no plugin of CNI network %s publishes ports", list.Name)
	}
	for _, text := range []string{req.Namespace, req.Name, req.UID} {
		if strings.ContainsAny(text, ";\n\x00") { // would be another argument to the plugins
			return nil, errs.New(errs.Invalid, "pod %q: plugins of CNI cannot be told of it: there is a semicolon, a line's end or a zero in it", text)
		}
	}
	abilities, err := s.abilities(req, ports)
	if err != nil {
		return nil, err
	}
	e := &endpoint{network: cniID(list.Name), title: list.Name, cni: true, inside: podInterface, routed: true}
	a := &attachment{
		container: req.ID, name: req.Name + "." + req.Namespace, hostname: req.Name, namespace: req.NetNS, endpoints: []*endpoint{e}, ports: ports,
		pod: &podRecord{CNI: list.Bytes, Abilities: abilities, Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", req.Namespace},
			{"K8S_POD_NAME", req.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", req.ID},
			{"K8S_POD_UID", req.UID},
		}},
	}
	if a.pod.CNI, err = wholeList(list); err != nil {
		return nil, err
	}
	if err := s.keepPod(a); err != nil {
		return nil, err
	}
	result, err := s.podCNI.addList(ctx, list, a.podConf(e))
	if err != nil {
		if del := s.podCNI.undoAdd(ctx, list, a.podConf(e)); del != nil {
			return nil, fmt.Errorf("network %s: %w", list.Name, joinDel(err, del)) // the record stays
		}
		s.forget(a)
		return nil, fmt.Errorf("network %s: %w", list.Name, err)
	}
	whole := *a
	whole.endpoints, whole.pod = podResult(*e, *a.pod, result)
	if err := s.keepPod(&whole); err != nil {
		return nil, joinDel(err, s.detach(context.WithoutCancel(ctx), &whole))
	}
	return &whole, nil
}

// podConf is what plugins are told of a pod.
func (a *attachment) podConf(e *endpoint) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: a.container, NetNS: a.namespace, IfName: e.inside,
		Args: a.pod.Args, CapabilityArgs: a.pod.Abilities,
	}
}

// wholeList is a list with the plugins that it names by files of a folder.
func wholeList(list *libcni.NetworkConfigList) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &fields); err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", list.Name, err)
	}
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, p := range list.Plugins {
		plugins[i] = p.Bytes
	}
	all, err := json.Marshal(plugins)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", list.Name, err)
	}
	fields["plugins"] = all
	return json.Marshal(fields)
}

// podResult writes down what came out of ADD.
func podResult(e endpoint, pod podRecord, result *types100.Result) ([]*endpoint, *podRecord) {
	index := map[int]int{} // of a plugin's interface among ours
	for i, link := range result.Interfaces {
		if link.Sandbox == "" || link.Name == "lo" {
			continue
		}
		index[i] = len(pod.Interfaces)
		pod.Interfaces = append(pod.Interfaces, spec.PodInterface{Name: link.Name, MAC: link.Mac})
		if link.Name == e.inside {
			e.mac = link.Mac
		}
	}
	if len(pod.Interfaces) == 0 {
		pod.Interfaces = []spec.PodInterface{{Name: e.inside}}
	}
	for _, ip := range result.IPs {
		prefix, ok := prefixOf(&ip.Address)
		if !ok {
			continue
		}
		e.addrs = append(e.addrs, prefix)
		if gate, ok := netip.AddrFromSlice(ip.Gateway); ok {
			e.gates = append(e.gates, gate.Unmap())
		}
		at := 0
		if ip.Interface != nil {
			at = index[*ip.Interface]
		}
		pod.Interfaces[at].IPs = append(pod.Interfaces[at].IPs, prefix.Addr().String())
	}
	slices.SortStableFunc(e.addrs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return []*endpoint{&e}, &pod
}

// removePod runs DEL as ADD was run.
func (c *cniPlugins) removePod(ctx context.Context, a *attachment, e *endpoint) error {
	list, err := libcni.NetworkConfFromBytes(a.pod.CNI)
	if err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return c.delList(ctx, list, a.podConf(e))
}

// status asks the plugins of a network whether they can serve pods.
func (c *cniPlugins) status(ctx context.Context, list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if _, err := (&pluginExec{}).FindInPath(p.Network.Type, c.bins); err != nil {
			return errs.New(errs.Unavailable, "CNI network %s: %w", list.Name, err)
		}
	}
	within, cancel := context.WithTimeout(ctx, min(c.timeout, statusGood))
	defer cancel()
	if err := c.lib.GetStatusNetworkList(within, list); err != nil {
		return errs.New(errs.Unavailable, "CNI network %s: %w", list.Name, err)
	}
	return nil
}

// collectCNI lets plugins free what belongs to nobody any more, as after a
// power cut, where the configuration's version has it and does not say that
// others use the network too. No ADD runs meanwhile; while one does, nothing
// is collected.
func (s *Set) collectCNI(ctx context.Context) error {
	c := s.podCNI
	if !c.adding.TryLock() {
		return nil
	}
	defer c.adding.Unlock()
	ctx, cancel := context.WithTimeout(ctx, min(c.timeout, statusGood))
	defer cancel()
	var failed error
	for _, list := range c.lists() {
		args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}} // [], where there are none
		for _, a := range s.attached() {
			for _, e := range a.endpoints {
				if e.cni && e.title == list.Name {
					args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.container, IfName: e.inside})
				}
			}
		}
		if err := c.lib.GCNetworkList(ctx, list, args); err != nil {
			failed = errors.Join(failed, fmt.Errorf("CNI GC of network %s: %w", list.Name, err))
		}
	}
	return failed
}

// abilities are what plugins get who declare them.
func (s *Set) abilities(req PodRequest, ports []spec.PortMapping) (map[string]any, error) {
	all := map[string]any{}
	var mappings []map[string]any
	for _, p := range ports {
		mappings = append(mappings, map[string]any{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": p.Protocol, "hostIP": p.HostIP})
	}
	if len(mappings) > 0 {
		all["portMappings"] = mappings
	}
	bandwidth, err := bandwidthOf(req.Annotations)
	if err != nil {
		return nil, err
	}
	if bandwidth != nil {
		all["bandwidth"] = bandwidth
	}
	s.mu.Lock()
	cidrs := s.podCIDRs
	s.mu.Unlock()
	if len(cidrs) > 0 {
		var ranges [][]map[string]any
		for _, cidr := range cidrs {
			ranges = append(ranges, []map[string]any{{"subnet": cidr}})
		}
		all["ipRanges"] = ranges
	}
	if dns := req.DNS; dns != nil && len(dns.Servers)+len(dns.Searches)+len(dns.Options) > 0 {
		all["dns"] = map[string]any{"servers": dns.Servers, "searches": dns.Searches, "options": dns.Options}
	}
	if req.CgroupParent != "" {
		all["cgroupPath"] = req.CgroupParent
	}
	return all, nil
}

// bandwidthOf reads the limits that Kubernetes writes as annotations, in bits
// a second.
func bandwidthOf(annotations map[string]string) (map[string]any, error) {
	limits := map[string]any{}
	for _, way := range []string{"ingress", "egress"} {
		text, ok := annotations["kubernetes.io/"+way+"-bandwidth"]
		if !ok {
			continue
		}
		rate, ok := quantity(text)
		if !ok || rate < 1000 {
			return nil, errs.New(errs.Invalid, "annotation kubernetes.io/%s-bandwidth=%s: want bits a second, as in 10M, at least 1k", way, text)
		}
		limits[way+"Rate"] = rate
		limits[way+"Burst"] = math.MaxInt32
	}
	if len(limits) == 0 {
		return nil, nil
	}
	return limits, nil
}

// quantity reads a number as Kubernetes writes them: 10M, 1.5Gi, 2e6.
func quantity(text string) (int64, bool) {
	number := strings.TrimRight(text, "numkKMGTPEi")
	units := map[string]float64{
		"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
	}
	unit, ok := units[text[len(number):]]
	value, err := strconv.ParseFloat(number, 64)
	whole := math.Ceil(value * unit)
	return int64(whole), ok && err == nil && whole >= 0 && whole < math.MaxInt64
}

// namespaceInode tells namespaces apart, whatever they are called.
func namespaceInode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return st.Ino, nil
}

// keepPod makes a pod's attachment known. It is in a file of the state folder
// before this returns, which a killed node finds again, and in the records a
// little later, for after a reboot.
func (s *Set) keepPod(a *attachment) error {
	content, err := json.Marshal(a.record())
	if err != nil {
		return err
	}
	path := s.podFile(a.container)
	err = os.WriteFile(path+".new", content, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.WriteFile(path+".new", content, 0o600)
		}
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("keep a pod's network: %w", err)
	}
	s.keep(a)
	return nil
}

func (s *Set) podFile(id string) string { return filepath.Join(s.cfg.State, "podnet", id) }

// loadPods reads what a killed node had no time to put into the records.
func (s *Set) loadPods() error {
	files, err := os.ReadDir(filepath.Dir(s.podFile("x")))
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	for _, file := range files {
		path := s.podFile(file.Name())
		if strings.HasSuffix(path, ".new") {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var record attachmentRecord
		if err := json.Unmarshal(content, &record); err != nil || record.Container != file.Name() || record.Pod == nil {
			s.cfg.Log.Warn("the record of a pod's network makes no sense", "file", path, "err", err)
			if err := os.Remove(path); err != nil {
				return err
			}
			continue // what was written for the time after a reboot has to do
		}
		s.attachments[record.Container] = record.attachment()
	}
	return nil
}
