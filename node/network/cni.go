package network

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"berth/base/errs"
	"berth/spec"
)

// cniPlugins joins containers to the networks of a CNI configuration. The
// folder is read at each use: networks come and go with their files.
type cniPlugins struct {
	dir string
	lib *libcni.CNIConfig
}

func newCNIPlugins(cfg Config, h *host) *cniPlugins {
	bins := filepath.SplitList(cmp.Or(cfg.CNIBinDir, "/opt/cni/bin:/usr/lib/cni"))
	cache := filepath.Join(cfg.State, "cni")
	return &cniPlugins{cfg.CNIConfDir, libcni.NewCNIConfigWithCacheDir(bins, cache, &hostExec{host: h})}
}

// hostExec runs plugins in the host's network namespace.
type hostExec struct {
	invoke.RawExec
	version.PluginDecoder
	host *host
}

// ExecPlugin starts the plugin from a thread that is there.
func (e *hostExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (out []byte, err error) {
	err = e.host.do(func() error {
		out, err = e.RawExec.ExecPlugin(ctx, path, stdin, environ)
		return err
	})
	return out, err
}

func cniID(name string) string {
	sum := sha256.Sum256([]byte("cni " + name))
	return hex.EncodeToString(sum[:])
}

// lists are the networks, in the order of their files. A file that cannot be
// read makes no network.
func (c *cniPlugins) lists() []*libcni.NetworkConfigList {
	files, err := libcni.ConfFiles(c.dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil
	}
	slices.Sort(files)
	var lists []*libcni.NetworkConfigList
	for _, file := range files {
		if list, err := readCNI(file); err == nil && networkName.MatchString(list.Name) {
			lists = append(lists, list)
		}
	}
	return lists
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

// add runs ADD and reads what came out.
func (c *cniPlugins) add(ctx context.Context, a *attachment, p place, inside string) (*endpoint, error) {
	list, err := c.find(p.cni)
	if err != nil {
		return nil, err
	}
	if len(a.ports) > 0 && len(a.endpoints) == 0 && !capable(list, "portMappings") {
		return nil, errs.New(errs.Unsupported, "no plugin of its CNI configuration publishes ports")
	}
	rt := runtimeConf(a, p.want, inside)
	result, err := c.lib.AddNetworkList(ctx, list, rt)
	if err != nil {
		// A plugin that failed half way cleans up when it is asked to.
		return nil, fmt.Errorf("CNI ADD: %w", joinDel(err, c.lib.DelNetworkList(context.WithoutCancel(ctx), list, rt)))
	}
	out, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("CNI result: %w", joinDel(err, c.lib.DelNetworkList(context.WithoutCancel(ctx), list, rt)))
	}
	e := &endpoint{network: cniID(p.cni), title: p.cni, cni: true, inside: inside, routed: true, aliases: p.want.Aliases}
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
	if !isNamespace(a.namespace) {
		rt.NetNS = "" // gone, as after a reboot; addresses must be freed still
	}
	if err := c.lib.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

// check runs CHECK: is what ADD made still there?
func (c *cniPlugins) check(ctx context.Context, a *attachment, e *endpoint) error {
	list, err := c.find(e.title)
	if err != nil {
		return err
	}
	return c.lib.CheckNetworkList(ctx, list, runtimeConf(a, spec.EndpointConfig{Aliases: e.aliases}, e.inside))
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
