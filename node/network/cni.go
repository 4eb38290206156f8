package network

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"berth/base/errs"
	"berth/spec"
)

// cniPlugins joins containers to the networks of a CNI configuration. The
// folder is read at each use: networks come and go with their files.
type cniPlugins struct {
	dir     string
	bins    []string
	timeout time.Duration // of one operation on one container
	lib     *libcni.CNIConfig

	earlier *stragglers // of an earlier node; nil for none
	leaving leaving

	adding sync.RWMutex // read by each ADD, written by what collects leftovers

	mu   sync.Mutex
	read map[string]cniFile
}

// cniFile is a configuration as it was last read and could be understood.
type cniFile struct {
	content []byte
	list    *libcni.NetworkConfigList
}

// cniTimeout is how long plugins may take unless Config says otherwise.
const cniTimeout = time.Minute

func newCNIPlugins(cfg Config, dir string, h *host) *cniPlugins {
	bins := filepath.SplitList(cmp.Or(cfg.CNIBinDir, "/opt/cni/bin:/usr/lib/cni"))
	cache := filepath.Join(cfg.State, "cni")
	return &cniPlugins{
		dir: dir, bins: bins, timeout: cmp.Or(cfg.CNITimeout, cniTimeout),
		lib:  libcni.NewCNIConfigWithCacheDir(bins, cache, &pluginExec{host: h}),
		read: map[string]cniFile{},
	}
}

func cniID(name string) string {
	sum := sha256.Sum256([]byte("cni " + name))
	return hex.EncodeToString(sum[:])
}

// lists are the networks, in the order of their files. A file that cannot be
// read makes no network.
func (c *cniPlugins) lists() []*libcni.NetworkConfigList {
	lists, _ := c.load()
	return lists
}

// load reads the folder. A file that makes no sense, as one that is just being
// written, stands for what it was before; problems tells of it.
func (c *cniPlugins) load() (lists []*libcni.NetworkConfigList, problems error) {
	files, err := libcni.ConfFiles(c.dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	slices.Sort(files)
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.read, func(file string, _ cniFile) bool { return !slices.Contains(files, file) })
	for _, file := range files {
		list, err := c.file(file)
		if err != nil {
			problems = errors.Join(problems, fmt.Errorf("CNI configuration %s: %w", file, err))
		}
		if list != nil {
			lists = append(lists, list)
		}
	}
	return lists, problems
}

// file reads one file, and understands it again only if it has changed. The
// caller holds mu.
func (c *cniPlugins) file(path string) (*libcni.NetworkConfigList, error) {
	known := c.read[path]
	content, err := os.ReadFile(path)
	if err != nil {
		return known.list, err
	}
	// A list may name files in a folder besides; those are read each time.
	if known.list != nil && known.list.LoadOnlyInlinedPlugins && bytes.Equal(content, known.content) {
		return known.list, nil
	}
	list, err := readCNI(path)
	if err == nil && !networkName.MatchString(list.Name) {
		err = errs.New(errs.Invalid, "%q cannot name a network", list.Name)
	}
	if err != nil {
		return known.list, err
	}
	c.read[path] = cniFile{content: content, list: list}
	return list, nil
}

func readCNI(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.NetworkConfFromFile(file)
	}
	single, err := libcni.ConfFromFile(file) //nolint:staticcheck // a file of one plugin is old, and still about
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(single) //nolint:staticcheck // as above
}

func (c *cniPlugins) find(ref string) (*libcni.NetworkConfigList, error) {
	var found []*libcni.NetworkConfigList
	for _, list := range c.lists() {
		if list.Name == ref {
			return list, nil
		}
		if isShortID(ref, cniID(list.Name)) {
			found = append(found, list)
		}
	}
	if len(found) != 1 {
		return nil, errs.New(errs.NotFound, "no such network: %s", ref)
	}
	return found[0], nil
}

// add runs ADD and reads what came out. Where it failed, and what there is of
// it could not be taken back, the endpoint is returned with the error.
func (c *cniPlugins) add(ctx context.Context, a *attachment, p place, inside string) (*endpoint, error) {
	list, err := c.find(p.cni)
	if err != nil {
		return nil, err
	}
	if len(a.ports) > 0 && len(a.endpoints) == 0 && !capable(list, "portMappings") {
		return nil, errs.New(errs.Unsupported, "no plugin of its CNI configuration publishes ports")
	}
	e := &endpoint{network: cniID(p.cni), title: p.cni, cni: true, inside: inside, aliases: p.want.Aliases}
	rt := runtimeConf(a, p.want, inside)
	out, err := c.addList(ctx, list, rt)
	if err != nil {
		if del := c.undoAdd(ctx, list, rt); del != nil {
			return e, joinDel(err, del)
		}
		return nil, err
	}
	e.routed = true
	for _, i := range out.Interfaces {
		if i.Sandbox != "" && i.Name == inside {
			e.mac = i.Mac
		}
	}
	for _, ip := range out.IPs {
		if prefix, ok := prefixOf(&ip.Address); ok {
			e.addrs = append(e.addrs, prefix)
		}
		if gate, ok := netip.AddrFromSlice(ip.Gateway); ok {
			e.gates = append(e.gates, gate.Unmap())
		}
	}
	slices.SortStableFunc(e.addrs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return e, nil
}

// addList runs ADD of each plugin. A plugin that failed half way cleans up
// when it is asked to, which is left to the caller.
func (c *cniPlugins) addList(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (*types100.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	c.adding.RLock()
	defer c.adding.RUnlock()
	result, err := c.lib.AddNetworkList(ctx, list, rt)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	out, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("CNI result: %w", err)
	}
	return out, nil
}

func joinDel(err, del error) error {
	if del != nil {
		return fmt.Errorf("%w (and its DEL: %w)", err, del)
	}
	return err
}

// remove runs DEL, with the configuration of the time of ADD if the file has
// changed or is gone since.
func (c *cniPlugins) remove(ctx context.Context, a *attachment, e *endpoint) error {
	rt := runtimeConf(a, spec.EndpointConfig{Network: e.title, Aliases: e.aliases}, e.inside)
	list, err := c.find(e.title)
	if list == nil {
		list = &libcni.NetworkConfigList{Name: e.title}
	}
	if kept, keptConf, keptErr := c.lib.GetNetworkListCachedConfig(list, rt); keptErr == nil && kept != nil {
		if then, parseErr := libcni.NetworkConfFromBytes(kept); parseErr == nil {
			list, rt, err = then, keptConf, nil
		}
	}
	if err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return c.delList(ctx, list, rt)
}

// check runs CHECK: is what ADD made still there?
func (c *cniPlugins) check(ctx context.Context, a *attachment, e *endpoint) error {
	list, err := c.find(e.title)
	if err != nil {
		return err
	}
	return c.checkList(ctx, list, runtimeConf(a, spec.EndpointConfig{Aliases: e.aliases}, e.inside))
}

// checkList runs CHECK of each plugin. One of a version without it is taken to
// stand.
func (c *cniPlugins) checkList(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return ignore(c.lib.CheckNetworkList(ctx, list, rt), libcni.ErrorCheckNotSupp)
}

func capable(list *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}

// runtimeConf says who joins and what it wants; plugins get the capabilities
// that they declare.
func runtimeConf(a *attachment, want spec.EndpointConfig, inside string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: a.container, NetNS: a.namespace, IfName: inside,
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", cmp.Or(a.hostname, a.name)}},
		CapabilityArgs: map[string]any{},
	}
	if len(a.endpoints) == 0 || a.endpoints[0].inside == inside { // ports lead to the first network
		var ports []map[string]any
		for _, p := range a.ports {
			for i := range p.Range {
				ports = append(ports, map[string]any{"hostPort": p.HostPort + i, "containerPort": p.ContainerPort + i, "protocol": p.Protocol, "hostIP": p.HostIP})
			}
		}
		if len(ports) > 0 {
			rt.CapabilityArgs["portMappings"] = ports
		}
	}
	if ips := slices.DeleteFunc([]string{want.IPv4, want.IPv6}, func(ip string) bool { return ip == "" }); len(ips) > 0 {
		rt.CapabilityArgs["ips"] = ips
	}
	if want.MAC != "" {
		rt.CapabilityArgs["mac"] = want.MAC
	}
	if len(want.Aliases) > 0 {
		rt.CapabilityArgs["aliases"] = map[string][]string{want.Network: want.Aliases}
	}
	if len(a.dns) > 0 {
		rt.CapabilityArgs["dns"] = map[string]any{"servers": a.dns}
	}
	return rt
}
