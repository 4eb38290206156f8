package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// forward is one published port: what reaches from goes to to.
type forward struct {
	proto uint8
	from  netip.AddrPort // an unspecified address stands for all of its family
	to    netip.AddrPort
}

// zone is what the rules need to know of a network.
type zone struct {
	bridge     string
	prefixes   []netip.Prefix
	internal   bool
	masquerade bool
	// names sends questions to port 53 of a gateway elsewhere, where
	// something else has the port on the host.
	names []forward
}

// firewall is the node's nftables table. Its rules are made anew, in one
// transaction, when a network comes or goes; a published port is an element
// of a map and touches no rule.
//
// The forward chain lets a network talk to itself and to the world, and the
// world to published ports only; between networks there is nothing, but what
// goes through a published port of the host. Its verdicts end this table's
// say, not that of other tables.
type firewall struct {
	host  *host
	table *nftables.Table

	bridges *nftables.Set // names of all our bridges
	inside  *nftables.Set // pairs of the same bridge
	closed  *nftables.Set // bridges of internal networks
	maps    map[mapKind]*nftables.Set

	mu sync.Mutex // one transaction at a time
}

// mapKind tells the four maps of published ports apart.
type mapKind struct {
	v6  bool
	any bool // keys without an address
}

func kindOf(f forward) mapKind {
	return mapKind{v6: f.from.Addr().Is6(), any: f.from.Addr().IsUnspecified()}
}

func newFirewall(h *host, instance string) *firewall {
	name := "berth"
	if instance != "" {
		name += "-" + instance
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	pair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	set := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: table, Name: name, KeyType: key}
	}
	fw := &firewall{
		host: h, table: table,
		bridges: set("bridges", nftables.TypeIFName),
		inside:  set("inside", pair),
		closed:  set("closed", nftables.TypeIFName),
		maps:    map[mapKind]*nftables.Set{},
	}
	fw.inside.Concatenation = true
	for _, v6 := range []bool{false, true} {
		addr, suffix := nftables.TypeIPAddr, "4"
		if v6 {
			addr, suffix = nftables.TypeIP6Addr, "6"
		}
		target := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
		addrPort := nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
		fw.maps[mapKind{v6, true}] = &nftables.Set{Table: table, Name: "ports" + suffix, KeyType: port, DataType: target, IsMap: true, Concatenation: true}
		fw.maps[mapKind{v6, false}] = &nftables.Set{Table: table, Name: "addrports" + suffix, KeyType: addrPort, DataType: target, IsMap: true, Concatenation: true}
	}
	return fw
}

// transaction collects changes and applies them all or not at all.
func (fw *firewall) transaction(fill func(c *nftables.Conn) error) error {
	fw.mu.Lock()
	defer fw.mu.Unlock()
	// Every message is acknowledged, and acknowledgements wait in the
	// socket until the last message has been taken in.
	roomy := nftables.WithSockOptions(func(c *netlinkConn) error { return c.SetReadBuffer(1 << 22) })
	return fw.host.do(func() error {
		c, err := nftables.New(roomy)
		if err != nil {
			return err
		}
		if err := fill(c); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("change nftables table %s: %w", fw.table.Name, err)
		}
		return nil
	})
}

// rebuild replaces the whole table, whatever is there.
func (fw *firewall) rebuild(zones []zone, forwards []forward) error {
	return fw.transaction(func(c *nftables.Conn) error {
		c.AddTable(fw.table) // so that there is one to delete
		c.DelTable(fw.table)
		c.AddTable(fw.table)
		for _, set := range fw.sets() {
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
		if err := fw.addZones(c, zones); err != nil {
			return err
		}
		return fw.addForwards(c, forwards)
	})
}

// setZones replaces the rules and leaves the published ports alone.
func (fw *firewall) setZones(zones []zone) error {
	return fw.transaction(func(c *nftables.Conn) error {
		for _, chain := range fw.chains() {
			c.FlushChain(chain)
		}
		for _, set := range []*nftables.Set{fw.bridges, fw.inside, fw.closed} {
			c.FlushSet(set)
		}
		return fw.addZones(c, zones)
	})
}

// change takes away published ports and adds others.
func (fw *firewall) change(remove, add []forward) error {
	if len(remove) == 0 && len(add) == 0 {
		return nil
	}
	return fw.transaction(func(c *nftables.Conn) error {
		for kind, elements := range fw.elements(remove) {
			for part := range slices.Chunk(elements, elementsPerMessage) {
				if err := c.SetDeleteElements(fw.maps[kind], part); err != nil {
					return err
				}
			}
		}
		return fw.addForwards(c, add)
	})
}

// remove deletes the table; none is no error.
func (fw *firewall) remove() error {
	return fw.transaction(func(c *nftables.Conn) error {
		c.AddTable(fw.table)
		c.DelTable(fw.table)
		return nil
	})
}

// stands says whether the table is still there. Others may flush all rules,
// as Debian's nftables service does when it starts.
func (fw *firewall) stands() (bool, error) {
	fw.mu.Lock()
	defer fw.mu.Unlock()
	found := false
	err := fw.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		if _, err := c.ListChain(fw.table, chainForward); err == nil {
			found = true
			return nil
		}
		// What it failed with cannot be told apart.
		chains, err := c.ListChainsOfTableFamily(fw.table.Family)
		for _, chain := range chains {
			found = found || chain.Table.Name == fw.table.Name && chain.Name == chainForward
		}
		return err
	})
	return found, err
}

// elementsPerMessage keeps a list of elements below the 64 KiB of a netlink
// attribute.
const elementsPerMessage = 400

func (fw *firewall) addForwards(c *nftables.Conn, forwards []forward) error {
	for kind, elements := range fw.elements(forwards) {
		for part := range slices.Chunk(elements, elementsPerMessage) {
			if err := c.SetAddElements(fw.maps[kind], part); err != nil {
				return err
			}
		}
	}
	return nil
}

func (fw *firewall) elements(forwards []forward) map[mapKind][]nftables.SetElement {
	out := map[mapKind][]nftables.SetElement{}
	for _, f := range forwards {
		kind := kindOf(f)
		var key []byte
		if !kind.any {
			key = append(key, f.from.Addr().AsSlice()...)
		}
		key = append(key, f.proto, 0, 0, 0)
		key = append(key, portBytes(f.from.Port())...)
		value := append(f.to.Addr().AsSlice(), portBytes(f.to.Port())...)
		out[kind] = append(out[kind], nftables.SetElement{Key: key, Val: value})
	}
	return out
}

// portBytes is a port as it stands in a concatenation: padded to a register.
func portBytes(port uint16) []byte { return []byte{byte(port >> 8), byte(port), 0, 0} }

func (fw *firewall) sets() []*nftables.Set {
	sets := []*nftables.Set{fw.bridges, fw.inside, fw.closed}
	for _, v6 := range []bool{false, true} {
		sets = append(sets, fw.maps[mapKind{v6, true}], fw.maps[mapKind{v6, false}])
	}
	return sets
}

// protocols by name. SCTP ports are published by rules only; nobody holds
// them.
func protocolNumber(name string) (uint8, error) {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	case "sctp":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, errors.New("want tcp, udp or sctp")
}
