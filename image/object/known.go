package object

import (
	"encoding/binary"
	"math/bits"

	"berth/image/tree"
)

// key is the part of a digest that tells bodies of one shard apart. With the
// shard's own byte it is 104 bits of a sha256: nobody finds two bodies that
// share those with one of somebody else's.
type key [12]byte

func keyOf(d tree.Digest) key { return key(d[1:13]) }

// set is a hash table of keys, for there are millions: open addressing in an
// array that is seldom less than two thirds full. Keys are spread by
// themselves. The key of zeros stands for an empty place, and is kept apart.
type set struct {
	slots []key
	n     int
	zero  bool
}

func (s *set) home(k key) int {
	hi, _ := bits.Mul64(binary.LittleEndian.Uint64(k[:8]), uint64(len(s.slots)))
	return int(hi)
}

func (s *set) has(k key) bool {
	if k == (key{}) {
		return s.zero
	}
	if len(s.slots) == 0 {
		return false
	}
	_, found := s.find(k)
	return found
}

// find returns the place of k, or the empty one where it belongs.
func (s *set) find(k key) (at int, found bool) {
	for at = s.home(k); s.slots[at] != (key{}); {
		if s.slots[at] == k {
			return at, true
		}
		if at++; at == len(s.slots) {
			at = 0
		}
	}
	return at, false
}

func (s *set) add(k key) {
	if k == (key{}) {
		s.zero = true
		return
	}
	s.room(1)
	if at, found := s.find(k); !found {
		s.slots[at] = k
		s.n++
	}
}

// room makes the table big enough for n more.
func (s *set) room(n int) {
	need := s.n + n
	if need*8 <= len(s.slots)*7 {
		return
	}
	old := s.slots
	s.slots = make([]key, max(16, need+need/3+1))
	for _, k := range old {
		if k != (key{}) {
			at, _ := s.find(k)
			s.slots[at] = k
		}
	}
}

func (s *set) remove(k key) {
	if k == (key{}) {
		s.zero = false
		return
	}
	if len(s.slots) == 0 {
		return
	}
	at, found := s.find(k)
	if !found {
		return
	}
	s.n--
	// Keys behind it that are not at home move up, so that no gap hides them.
	size := len(s.slots)
	for next := (at + 1) % size; s.slots[next] != (key{}); next = (next + 1) % size {
		way := (next - s.home(s.slots[next]) + size) % size
		if gap := (next - at + size) % size; way >= gap {
			s.slots[at] = s.slots[next]
			at = next
		}
	}
	s.slots[at] = key{}
}
