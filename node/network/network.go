// Package network joins containers to networks, inside the process: links and
// addresses by netlink, rules by nftables, names by a small DNS server. No
// program is run, but for the plugins of a CNI configuration where there is
// one.
//
// # What is on the machine
//
// A network is a Linux bridge in the host's network namespace: berth0 for the
// network named bridge, brt-<id> for the others. Each bridge carries the
// gateway's addresses, and the alias "berth <instance>" by which a later
// start knows its own. A container on it has one end of a veth pair, eth0,
// eth1 and so on; the other end, a port of the bridge, is named after the
// container and network, so that making it twice cannot leave two.
//
// All rules live in one table, `inet berth` (`inet berth-<instance>` for a
// node that is not the machine's only one). Published ports are elements of
// maps in it; attaching a container adds elements in one transaction and
// touches no rule, so hundreds of containers cost what one does. Nothing
// outside the table is ever changed. A host firewall that drops forwarded
// packets in its own chains still drops them, as nftables lets every table
// say no: such a host must accept what comes from and goes to berth0 and
// brt-*, and let the bridges reach port 53 of the host.
//
// Network namespaces are files, <state>/netns/<id>, each with one bound on it.
//
// # What is kept
//
// Records of networks and attachments are in bucket "network" of base/kv and,
// while the node lives, in memory, which is what lists and the DNS server
// read. An attachment holds its addresses until Detach; they are never given
// to another container before, whatever restarts. Attaching a container that
// still has a record gives it the same addresses again.
//
// # Locks
//
// Set.mu guards everything in memory and is held for no longer than a lookup.
// Set.turns gives a container to one operation at a time, Set.change is held
// by the operations that change networks, Set.rules by those that change
// rules. Order: turns, change, rules, mu.
package network

import (
	"log/slog"
	"net/netip"
	"time"

	"berth/base/kv"
	"berth/spec"
)

// Names of the builtin networks.
const (
	Bridge = "bridge" // where a container goes that names no network
	Host   = "host"   // the host's own namespace
	None   = "none"   // a namespace with nothing but lo
)

// Config says where a Set keeps its things and what it may use.
type Config struct {
	DB *kv.DB
	// State is a folder that is empty after a reboot.
	State string
	// Instance tells nodes on one machine apart in the names of tables and
	// bridges. When empty it is made from State: the one in /run/berth gets
	// the plain names.
	Instance string
	// HostNS is the path of the network namespace to build in; the
	// process's own when empty.
	HostNS string
	// Pools are where networks without a subnet of their own get one.
	// DefaultPools when empty.
	Pools []Pool
	// Bridge sets up the default network; its name and driver count for
	// nothing. It is made on the first start and then stays as it is.
	Bridge spec.NetworkConfig
	// CNIConfDir holds *.conflist files; each is a network of driver cni.
	// CNIBinDir is where their plugins are, a list as in PATH.
	CNIConfDir, CNIBinDir string
	// PodCNIConfDir is the same for pods: the first network of a
	// configuration there is what they get, and our bridge where there is
	// none. CNIConfDir when empty.
	PodCNIConfDir string
	// PodNetwork is where pods go whatever is configured: the name of a
	// bridge network, or "cni", which waits for a configuration. When empty
	// it is as PodCNIConfDir says.
	PodNetwork string
	// CNITimeout is how long the plugins may take for one container, a
	// minute when 0. Then an ADD is killed, and a DEL no longer waited for.
	CNITimeout time.Duration
	// ResolvConf is the host's /etc/resolv.conf.
	ResolvConf string
	Log        *slog.Logger
}

// Pool is a range that is cut into subnets of Size bits.
type Pool struct {
	Base netip.Prefix
	Size int
}

// AttachRequest is a container that wants to be on networks.
type AttachRequest struct {
	Container string // the full id
	Name      string // resolved by the others on the network
	Hostname  string // told to CNI plugins
	Namespace string // path, as NewNamespace gave it
	Choice    spec.NetworkChoice
	Exposed   []spec.Exposed // what PublishAll publishes
}

// Attachment is how a container is reached.
type Attachment struct {
	Endpoints []spec.Endpoint // in the order of eth0, eth1, …
	Ports     []spec.PortMapping
}
