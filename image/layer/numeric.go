package layer

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// field is the text of a header's field, up to its first zero.
func field(b []byte) []byte {
	text, _, _ := bytes.Cut(b, []byte{0})
	return text
}

// number reads a field in octal, or in base 256 where its first bit is set.
func number(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		return binaryNumber(b)
	}
	// Almost always: digits, and one zero or space.
	n, last := int64(0), len(b)-1
	if len(b) <= 20 && (b[last] == 0 || b[last] == ' ') {
		for i, c := range b[:last] {
			if c < '0' || c > '7' {
				break
			}
			if n = n<<3 | int64(c-'0'); i == last-1 {
				return n, nil
			}
		}
	}
	return octal(b)
}

func octal(b []byte) (int64, error) {
	if b = bytes.Trim(b, " \x00"); len(b) == 0 {
		return 0, nil
	}
	u, err := strconv.ParseUint(string(field(b)), 8, 64)
	if err != nil {
		return 0, errHeader
	}
	return int64(u), nil
}

// binaryNumber reads a number of base 256, in two's complement.
func binaryNumber(b []byte) (int64, error) {
	flip := byte(0)
	if b[0]&0x40 != 0 {
		flip = 0xff
	}
	n := uint64(0)
	for i, c := range b {
		c ^= flip
		if i == 0 {
			c &= 0x7f
		}
		if n>>56 > 0 {
			return 0, errHeader
		}
		n = n<<8 | uint64(c)
	}
	if n>>63 > 0 {
		return 0, errHeader
	}
	if flip != 0 {
		return ^int64(n), nil
	}
	return int64(n), nil
}

// decimal reads a number of a PAX record.
func decimal(b []byte) (int64, error) {
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0, errHeader
	}
	return n, nil
}

// moment reads a time of a PAX record: seconds, and a fraction of as many
// digits as there are, of which nine count.
func moment(b []byte) (sec int64, nsec uint32, err error) {
	whole, fraction, _ := strings.Cut(string(b), ".")
	if sec, err = strconv.ParseInt(whole, 10, 64); err != nil {
		return 0, 0, errHeader
	}
	n := int64(0)
	for i := range max(9, len(fraction)) {
		digit := byte('0')
		if i < len(fraction) {
			digit = fraction[i]
		}
		if digit < '0' || digit > '9' {
			return 0, 0, errHeader
		}
		if i < 9 {
			n = n*10 + int64(digit-'0')
		}
	}
	if len(whole) > 0 && whole[0] == '-' && n > 0 {
		sec, n = sec-1, 1e9-n
	}
	return sec, uint32(n), nil
}

// sum adds up the bytes of a header, its checksum read as spaces.
func sum(h []byte) int64 {
	const low = 0x00ff00ff00ff00ff
	total := uint64(0) // in four lanes, none of which can overflow
	for at := 0; at < len(h); at += 8 {
		word := binary.LittleEndian.Uint64(h[at:])
		total += word&low + word>>8&low
	}
	n := int64(total&0xffff + total>>16&0xffff + total>>32&0xffff + total>>48)
	for _, c := range h[checksumAt : checksumAt+8] {
		n += ' ' - int64(c)
	}
	return n
}

// signedSum is what old programs wrote instead, who took bytes for signed.
func signedSum(h []byte) int64 {
	n := sum(h)
	for at, c := range h {
		if c >= 0x80 && (at < checksumAt || at >= checksumAt+8) {
			n -= 256
		}
	}
	return n
}
