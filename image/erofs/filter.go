package erofs

import "math/bits"

// filterBit is the bit of an inode's name filter that is clear when it has
// the xattr: the kernel need not look for one whose bit is set.
func filterBit[S string | []byte](index uint8, suffix S) uint32 {
	return 1 << (xxh32(suffix, 0x25BBE08F+uint32(index)) & 31)
}

// xxh32 is the hash XXH32.
func xxh32[S string | []byte](s S, seed uint32) uint32 {
	const p1, p2, p3, p4, p5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
	word := func(i int) uint32 {
		return uint32(s[i]) | uint32(s[i+1])<<8 | uint32(s[i+2])<<16 | uint32(s[i+3])<<24
	}
	i, h := 0, seed+p5
	if len(s) >= 16 {
		lanes := [4]uint32{seed + (p1+p2)&0xFFFFFFFF, seed + p2, seed, seed - p1}
		for ; i+16 <= len(s); i += 16 {
			for l := range lanes {
				lanes[l] = bits.RotateLeft32(lanes[l]+word(i+4*l)*p2, 13) * p1
			}
		}
		h = bits.RotateLeft32(lanes[0], 1) + bits.RotateLeft32(lanes[1], 7) + bits.RotateLeft32(lanes[2], 12) + bits.RotateLeft32(lanes[3], 18)
	}
	h += uint32(len(s))
	for ; i+4 <= len(s); i += 4 {
		h = bits.RotateLeft32(h+word(i)*p3, 17) * p4
	}
	for ; i < len(s); i++ {
		h = bits.RotateLeft32(h+uint32(s[i])*p5, 11) * p1
	}
	h ^= h >> 15
	h *= p2
	h ^= h >> 13
	h *= p3
	return h ^ h>>16
}
