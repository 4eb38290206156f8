package inflate

import "math/bits"

const (
	maxLit  = 288
	maxDist = 32
	maxCode = 15 // bits of the longest code

	litBits  = 11 // of a first lookup
	distBits = 9
)

// An entry of a table, from its lowest bit: six bits of how many bits it uses
// up, extra bits included (for a pointer: how many the second lookup takes);
// the kind; four bits of how many of these are the code; two of how many
// literals it stands for; from valueShift on the literals, the base of a
// length or distance, or where the second table begins.
const (
	pointer    = 1 << 6
	endOfBlock = 1 << 7
	codeShift  = 8
	countShift = 12
	literal    = 1 << 14
	special    = 1 << 15 // a pointer, the end of the block, or nothing at all
	valueShift = 16
)

// tables are a first table, indexed by the next bits, and behind it the second
// ones, for codes that are longer.
type tables struct{ all []uint32 }

func (t *tables) first(n int) []uint32 { return t.all[:1<<n] }

// build makes the tables for codes of these lengths, entries being what their
// symbols stand for.
func (t *tables) build(lengths []uint8, first int, entries []uint32) error {
	var count, next [maxCode + 1]int
	for _, l := range lengths {
		count[l]++
	}
	used, room, code, longest := len(lengths)-count[0], 1, 0, 0
	count[0] = 0
	for l := 1; l <= maxCode; l++ {
		code = (code + count[l-1]) << 1
		next[l] = code
		if room = room<<1 - count[l]; room < 0 {
			return damaged("more codes than their lengths allow")
		}
		if count[l] > 0 {
			longest = l
		}
	}
	// One code alone may take one bit, and a block without matches needs no
	// distances; otherwise every sequence of bits stands for something.
	if room > 0 && used > 0 && (used > 1 || longest > 1) {
		return damaged("fewer codes than their lengths need")
	}

	t.all = t.all[:0]
	t.grow(first)
	second := max(0, longest-first)
	for symbol, l := range lengths {
		if l == 0 {
			continue
		}
		length := int(l)
		at := int(bits.Reverse16(uint16(next[length])) >> (16 - l))
		next[length]++
		if length <= first {
			e := entries[symbol] + uint32(length) | uint32(length)<<codeShift
			for ; at < 1<<first; at += 1 << length {
				t.all[at] = e
			}
			continue
		}
		prefix := at & (1<<first - 1)
		if t.all[prefix]&pointer == 0 {
			t.all[prefix] = special | pointer | uint32(second) | uint32(len(t.all))<<valueShift
			t.grow(second)
		}
		base, rest := int(t.all[prefix]>>valueShift), length-first
		e := entries[symbol] + uint32(rest) | uint32(rest)<<codeShift
		for at >>= first; at < 1<<second; at += 1 << rest {
			t.all[base+at] = e
		}
	}
	return nil
}

// grow adds a table of entries that stand for nothing.
func (t *tables) grow(n int) {
	for range 1 << n {
		t.all = append(t.all, special)
	}
}

// pair lets an entry stand for two literals where the bits of a first lookup
// hold both.
func (t *tables) pair() {
	first := t.first(litBits)
	for i := len(first) - 1; i >= 0; i-- { // downwards: what follows i is single yet
		e := first[i]
		if e&literal == 0 {
			continue
		}
		then := first[i>>(e&63)]
		if used := e&63 + then&63; then&literal != 0 && used <= litBits {
			first[i] = literal | 2<<countShift | used | (e>>valueShift&0xff|then>>valueShift&0xff<<8)<<valueShift
		}
	}
}

// codes are what the symbols of the tables stand for, but for their lengths.
type codes struct {
	lit  [maxLit]uint32
	dist [maxDist]uint32
	pre  [19]uint32
}

func newCodes() (c codes) {
	for i := range c.lit[:256] {
		c.lit[i] = literal | 1<<countShift | uint32(i)<<valueShift
	}
	c.lit[256] = special | endOfBlock
	base := 3
	for i := range 28 {
		extra := max(0, i/4-1)
		c.lit[257+i] = uint32(base)<<valueShift | uint32(extra)
		base += 1 << extra
	}
	c.lit[285] = longest << valueShift
	c.lit[286], c.lit[287] = special, special
	base = 1
	for i := range 30 {
		extra := max(0, i/2-1)
		c.dist[i] = uint32(base)<<valueShift | uint32(extra)
		base += 1 << extra
	}
	c.dist[30], c.dist[31] = special, special
	for i := range c.pre {
		c.pre[i] = uint32(i) << valueShift
	}
	return c
}

func (r *Reader) fixed() error {
	for i := range r.lengths {
		switch {
		case i < 144:
			r.lengths[i] = 8
		case i < 256:
			r.lengths[i] = 9
		case i < 280:
			r.lengths[i] = 7
		case i < maxLit:
			r.lengths[i] = 8
		default:
			r.lengths[i] = 5
		}
	}
	return r.build(maxLit, maxDist)
}

// build makes both tables from lengths.
func (r *Reader) build(lits, dists int) error {
	if err := r.lit.build(r.lengths[:lits], litBits, r.codes.lit[:]); err != nil {
		return err
	}
	r.lit.pair()
	return r.dist.build(r.lengths[lits:lits+dists], distBits, r.codes.dist[:])
}

// dynamic reads the codes of a block, which are lengths packed by a code of
// their own.
func (r *Reader) dynamic() error {
	head, err := r.take(14)
	if err != nil {
		return err
	}
	lits, dists, pres := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if lits > 286 || dists > 30 {
		return damaged("more codes than there are symbols")
	}
	var packed [19]uint8
	order := [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	for _, symbol := range order[:pres] {
		l, err := r.take(3)
		if err != nil {
			return err
		}
		packed[symbol] = uint8(l)
	}
	if err := r.pre.build(packed[:], 7, r.codes.pre[:]); err != nil {
		return err
	}
	if err := r.unpackLengths(lits + dists); err != nil {
		return err
	}
	if r.lengths[256] == 0 {
		return damaged("a block without an end")
	}
	return r.build(lits, dists)
}

func (r *Reader) unpackLengths(n int) error {
	for i := 0; i < n; {
		// A code has at most seven bits, and after it come at most seven more.
		// There are so many left even in the last block: the member's end
		// follows.
		if err := r.need(14); err != nil {
			return err
		}
		e := r.pre.all[r.bits&127]
		if e&special != 0 {
			return damaged("a length that stands for nothing")
		}
		r.bits >>= e & 63
		r.valid -= uint(e & 63)
		symbol := uint8(e >> valueShift)
		value, more, least := uint8(0), uint(0), 1
		switch symbol {
		case 16:
			if i == 0 {
				return damaged("a length that repeats nothing")
			}
			value, more, least = r.lengths[i-1], 2, 3
		case 17:
			more, least = 3, 3
		case 18:
			more, least = 7, 11
		default:
			value = symbol
		}
		extra, err := r.take(more)
		if err != nil {
			return err
		}
		end := i + least + int(extra)
		if end > n {
			return damaged("more lengths than codes")
		}
		for ; i < end; i++ {
			r.lengths[i] = value
		}
	}
	return nil
}
