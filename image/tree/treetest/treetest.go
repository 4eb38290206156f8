// Package treetest makes trees for tests, with everything in them that a tree
// can have.
package treetest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"

	"golang.org/x/sys/unix"

	"berth/image/tree"
)

// Made is a random tree with the bodies of its objects.
type Made struct {
	Root    *tree.Node
	Objects map[tree.Digest][]byte

	r     *rand.Rand
	layer bool
	left  int
	links []*tree.Node
}

// Layer makes a random layer of about size files: with whiteouts, opaque and
// implied folders.
func Layer(seed uint64, size int) Made { return random(seed, size, true) }

// Merged makes a random tree of about size files without those.
func Merged(seed uint64, size int) Made { return random(seed, size, false) }

func random(seed uint64, size int, layer bool) Made {
	m := Made{
		Root: tree.NewFolder(), Objects: map[tree.Digest][]byte{},
		r: rand.New(rand.NewPCG(seed, 1)), layer: layer, left: size,
	}
	m.dress(m.Root)
	if layer {
		m.Root.Opaque, m.Root.Implied = m.r.IntN(8) == 0, m.r.IntN(4) == 0
	}
	for m.left > 0 {
		m.fill(m.Root, 0)
	}
	return m
}

// names are few, so that layers meet, and some are at the edges of what
// formats can say.
var names = []string{
	"a", "b", "c", "d", "e", "etc", "lib", "usr", "x", "y", "!", "-", ".!", ".hidden", "...", "a b", "ünïcode", "\xff\xfe", "line\nbreak",
	".wh.looks-deleted", "..data", strings.Repeat("long", 63) + "end",
}

func (m *Made) name() string {
	if m.r.IntN(3) > 0 {
		return names[m.r.IntN(len(names))]
	}
	return fmt.Sprintf("file-%d", m.r.IntN(200))
}

func (m *Made) fill(dir *tree.Node, depth int) {
	for range 1 + m.r.IntN(8) {
		m.left--
		n := m.node()
		dir.Set(m.name(), n)
		if n.IsDir() && depth < 8 {
			m.fill(n, depth+1)
		}
	}
}

func (m *Made) node() *tree.Node {
	kind := m.r.IntN(20)
	if len(m.links) > 0 && kind == 0 {
		return m.links[m.r.IntN(len(m.links))]
	}
	n := &tree.Node{}
	switch kind {
	case 1, 2, 3, 4:
		n.Mode = unix.S_IFDIR
		if m.layer {
			n.Opaque, n.Implied = m.r.IntN(5) == 0, m.r.IntN(4) == 0
		}
	case 5, 6:
		n.Mode, n.Target = unix.S_IFLNK, strings.Repeat("../x", 1+m.r.IntN(10))
	case 7:
		n.Mode, n.Rdev = unix.S_IFCHR, unix.Mkdev(m.r.Uint32N(1<<12), 1+m.r.Uint32N(1<<20-1))
	case 8:
		n.Mode, n.Rdev = unix.S_IFBLK, unix.Mkdev(m.r.Uint32N(1<<12), m.r.Uint32N(1<<20))
	case 9:
		n.Mode = unix.S_IFIFO
	case 10:
		n.Mode = unix.S_IFSOCK
	case 11, 12, 13:
		if m.layer {
			white := tree.NewWhiteout()
			white.Sec = int64(m.r.Uint32())
			return white
		}
		fallthrough
	default:
		n.Mode = unix.S_IFREG
		m.body(n)
	}
	m.dress(n)
	if !n.IsDir() {
		m.links = append(m.links, n)
	}
	return n
}

func (m *Made) body(n *tree.Node) {
	size := 0
	switch m.r.IntN(10) {
	case 0:
	case 1, 2:
		size = 3900 + m.r.IntN(300) // about a block
	case 3:
		size = m.r.IntN(20_000)
	default:
		size = 1 + m.r.IntN(200)
	}
	body := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(body[i:], m.r.Uint64())
	}
	n.Size = int64(size)
	switch {
	case size == 0:
	case m.r.IntN(2) == 0:
		n.Body = body
	default:
		n.Object = sha256.Sum256(body)
		m.Objects[n.Object] = body
	}
}

// dress gives n mode, owner, time and xattrs.
func (m *Made) dress(n *tree.Node) {
	modes := []uint32{0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0, 0o777}
	n.Mode = n.Type() | modes[m.r.IntN(len(modes))]
	if n.Type() == unix.S_IFLNK {
		n.Mode = n.Type() | 0o777
	}
	if m.r.IntN(2) == 0 {
		n.UID, n.GID = m.r.Uint32N(1<<31), m.r.Uint32N(70_000)
	}
	n.Sec, n.Nsec = int64(m.r.Uint32()), m.r.Uint32N(1e9)
	if m.r.IntN(8) == 0 {
		n.Sec, n.Nsec = 0, 0
	}
	for m.r.IntN(4) == 0 {
		m.xattr(n)
	}
	n.Xattrs = tree.SortedXattrs(n.Xattrs)
}

func (m *Made) xattr(n *tree.Node) {
	value := make([]byte, m.r.IntN(40))
	for i := range value {
		value[i] = byte(m.r.Uint32())
	}
	x := tree.Xattr{Name: fmt.Sprintf("trusted.key%d", m.r.IntN(1000)), Value: value}
	switch m.r.IntN(6) {
	case 0:
		x.Name = []string{"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.overlay.deep", "trusted.overlay.other"}[m.r.IntN(4)]
	case 1:
		if n.IsRegular() || n.IsDir() {
			x.Name = "user." + strings.Repeat("k", 1+m.r.IntN(200))
		}
	case 2:
		if n.IsRegular() {
			x = tree.Xattr{Name: "security.capability", Value: Capability()}
		}
	case 3:
		if n.IsRegular() || n.IsDir() {
			x = tree.Xattr{Name: "system.posix_acl_access", Value: ACL(n.Mode, m.r.Uint32N(100_000))}
		}
	case 4:
		x.Value = make([]byte, m.r.IntN(2000))
	}
	for _, have := range n.Xattrs {
		if have.Name == x.Name {
			return
		}
	}
	n.Xattrs = append(n.Xattrs, x)
}

// Capability is a security.capability that lets a program bind low ports.
func Capability() []byte {
	b := make([]byte, 20)
	binary.LittleEndian.PutUint32(b, 0x02000001)
	binary.LittleEndian.PutUint32(b[4:], 1<<10)
	return b
}

// ACL is an access control list that fits mode and gives uid more rights.
func ACL(mode, uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	entry := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm&7)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	const nobody = 0xFFFFFFFF
	entry(0x01, uint16(mode>>6), nobody) // owner
	entry(0x02, 7, uid)                  // a user
	entry(0x04, uint16(mode>>3), nobody) // group
	entry(0x10, uint16(mode>>3), nobody) // mask: what the mode shows of the group
	entry(0x20, uint16(mode), nobody)    // others
	return b
}
