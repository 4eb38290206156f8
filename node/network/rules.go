package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

type netlinkConn = netlink.Conn

// match is the beginning of a rule, or all of it.
type match []expr.Any

func (m match) and(more ...match) match {
	out := append(match(nil), m...)
	for _, x := range more {
		out = append(out, x...)
	}
	return out
}

// Chains. Names say what passes there.
const (
	chainGuard   = "guard"
	chainPre     = "arriving"
	chainOut     = "local"
	chainPublish = "published"
	chainPost    = "leaving"
	chainForward = "forwarded"
)

func (fw *firewall) chains() []*nftables.Chain {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return &nftables.Chain{Name: name, Table: fw.table, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept}
	}
	return []*nftables.Chain{
		base(chainGuard, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw),
		{Name: chainPublish, Table: fw.table},
		base(chainPre, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
		base(chainOut, nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
		base(chainPost, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource),
		base(chainForward, nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter),
	}
}

// addZones fills the sets of bridges and every chain.
func (fw *firewall) addZones(c *nftables.Conn, zones []zone) error {
	var bridges, inside, closed []nftables.SetElement
	for _, z := range zones {
		name := interfaceName(z.bridge)
		bridges = append(bridges, nftables.SetElement{Key: name})
		inside = append(inside, nftables.SetElement{Key: append(append([]byte(nil), name...), name...)})
		if z.internal {
			closed = append(closed, nftables.SetElement{Key: name})
		}
	}
	for set, elements := range map[*nftables.Set][]nftables.SetElement{fw.bridges: bridges, fw.inside: inside, fw.closed: closed} {
		if len(elements) == 0 {
			continue
		}
		if err := c.SetAddElements(set, elements); err != nil {
			return err
		}
	}
	for _, chain := range fw.chains() {
		c.AddChain(chain)
	}
	rule := func(chain string, m match) {
		c.AddRule(&nftables.Rule{Table: fw.table, Chain: &nftables.Chain{Name: chain, Table: fw.table}, Exprs: m})
	}

	// Answers to masqueraded connections from 127.0.0.1 need route_localnet
	// on the bridges. It must not let containers reach what the host serves
	// to itself alone.
	rule(chainGuard, oneOf(fw.bridges, expr.MetaKeyIIFNAME).and(ip4, destination4("127.0.0.0/8"), drop))

	for _, z := range zones {
		for _, f := range z.names {
			rule(chainPre, name(z.bridge, expr.MetaKeyIIFNAME, expr.CmpOpEq).and(
				family(f.from.Addr()), addressIs(f.from.Addr(), toDestination), protocolIs(f.proto), portIs(f.from.Port()), redirect(f.to.Port())))
		}
	}
	rule(chainPre, toUs.and(jump(chainPublish)))
	rule(chainOut, toUs.and(jump(chainPublish)))
	rule(chainPublish, ip4.and(fw.lookup(mapKind{v6: false}), dnat(unix.NFPROTO_IPV4)))
	rule(chainPublish, ip4.and(fw.lookup(mapKind{v6: false, any: true}), dnat(unix.NFPROTO_IPV4)))
	// ::1 cannot leave lo, so [::1] is served by the node itself.
	notLoopback := ip6.and(addressIsNot(netip.IPv6Loopback(), toDestination))
	rule(chainPublish, notLoopback.and(fw.lookup(mapKind{v6: true}), dnat(unix.NFPROTO_IPV6)))
	rule(chainPublish, notLoopback.and(fw.lookup(mapKind{v6: true, any: true}), dnat(unix.NFPROTO_IPV6)))

	rule(chainPost, oneOf(fw.bridges, expr.MetaKeyOIFNAME).and(ip4, source(netip.MustParsePrefix("127.0.0.0/8")), masquerade))
	for _, z := range zones {
		for _, prefix := range z.prefixes {
			from := family(prefix.Addr()).and(source(prefix))
			// A container that reaches a neighbour through the host's
			// address must be answered through the host too.
			rule(chainPost, from.and(name(z.bridge, expr.MetaKeyOIFNAME, expr.CmpOpEq), wasDNAT, masquerade))
			if z.masquerade && !z.internal {
				rule(chainPost, from.and(name(z.bridge, expr.MetaKeyOIFNAME, expr.CmpOpNeq), masquerade))
			}
		}
	}

	rule(chainForward, fw.sameBridge().and(accept))
	rule(chainForward, oneOf(fw.closed, expr.MetaKeyIIFNAME).and(drop))
	rule(chainForward, oneOf(fw.closed, expr.MetaKeyOIFNAME).and(drop))
	rule(chainForward, established.and(accept))
	rule(chainForward, oneOf(fw.bridges, expr.MetaKeyOIFNAME).and(wasDNAT, accept))
	rule(chainForward, oneOf(fw.bridges, expr.MetaKeyOIFNAME).and(drop))
	return nil
}

// What rules are made of. Register 1 is the first of 16 bytes, 8 to 23 are
// its quarters and the following ones, as concatenations need them.

var (
	accept     = match{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = match{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade = match{&expr.Masq{}}
	ip4        = match{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}}
	ip6        = match{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV6}}}
	// toUs: the destination is an address of the host.
	toUs = match{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
	wasDNAT     = bits(expr.CtKeySTATUS, 1<<5) // IPS_DST_NAT
	established = bits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
)

func jump(chain string) match {
	return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func family(a netip.Addr) match {
	if a.Is4() {
		return ip4
	}
	return ip6
}

func bits(key expr.CtKey, mask uint32) match {
	return match{
		&expr.Ct{Register: 1, Key: key},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func oneOf(set *nftables.Set, key expr.MetaKey) match {
	return match{&expr.Meta{Key: key, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

func name(bridge string, key expr.MetaKey, op expr.CmpOp) match {
	return match{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: interfaceName(bridge)}}
}

func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// sameBridge: in by a bridge and out by the same.
func (fw *firewall) sameBridge() match {
	return match{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2},
		&expr.Lookup{SourceRegister: 1, SetName: fw.inside.Name, SetID: fw.inside.ID},
	}
}

// lookup finds where a published port leads: address and port, side by side
// from register 1 on.
func (fw *firewall) lookup(kind mapKind) match {
	set := fw.maps[kind]
	register := uint32(8)
	var m match
	if !kind.any {
		a := addressField(kind.v6, toDestination)
		a.DestRegister = register
		register += a.Len / 4
		m = append(m, a)
	}
	return append(m,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 8, DestRegister: 1, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
	)
}

func dnat(family uint32) match {
	port := uint32(9) // behind four bytes of address
	if family == unix.NFPROTO_IPV6 {
		port = 12
	}
	return match{&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: port, Specified: true}}
}

func redirect(port uint16) match {
	return match{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

func protocolIs(proto uint8) match {
	return match{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

func portIs(port uint16) match {
	return match{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// side of a packet's addresses.
type side bool

const (
	toSource      side = false
	toDestination side = true
)

func addressField(v6 bool, s side) *expr.Payload {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if v6 {
		p.Offset, p.Len = 8, 16
	}
	if s == toDestination {
		p.Offset += p.Len
	}
	return p
}

func addressIs(a netip.Addr, s side) match {
	return match{addressField(a.Is6(), s), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}}
}

func addressIsNot(a netip.Addr, s side) match {
	return match{addressField(a.Is6(), s), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()}}
}

func within(p netip.Prefix, s side) match {
	field := addressField(p.Addr().Is6(), s)
	ones := netip.PrefixFrom(lastOf(netip.PrefixFrom(zero(p.Addr()), 0)), p.Bits()).Masked().Addr()
	return match{
		field,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: field.Len, Mask: ones.AsSlice(), Xor: make([]byte, field.Len)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func zero(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func source(p netip.Prefix) match { return within(p, toSource) }

func destination4(prefix string) match { return within(netip.MustParsePrefix(prefix), toDestination) }
