package stats

import (
	"bytes"
	"strconv"
	"strings"

	"berth/spec"
)

// unlimited is where version 1 writes a limit for none: near 2^63.
const unlimited = 1 << 62

// number reads the file's only number; "max", no number at all, and what
// version 1 writes for no limit are 0.
func number(text []byte) uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil || n >= unlimited {
		return 0
	}
	return n
}

// field reads the number that follows a key at the start of a line.
func field(text []byte, key string) uint64 {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok && len(rest) > 0 && rest[0] == ' ' {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}

// blkio adds up lines such as "8:0 Read 4096".
func blkio(text []byte) (reads, writes uint64) {
	for line := range strings.Lines(string(text)) {
		parts := strings.Fields(line)
		if len(parts) != 3 {
			continue
		}
		n, _ := strconv.ParseUint(parts[2], 10, 64)
		switch parts[1] {
		case "Read":
			reads += n
		case "Write":
			writes += n
		}
	}
	return reads, writes
}

// ioStat adds up lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func ioStat(text []byte) (readBytes, writeBytes, reads, writes uint64) {
	for entry := range strings.FieldsSeq(string(text)) {
		name, value, _ := strings.Cut(entry, "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch name {
		case "rbytes":
			readBytes += n
		case "wbytes":
			writeBytes += n
		case "rios":
			reads += n
		case "wios":
			writes += n
		}
	}
	return readBytes, writeBytes, reads, writes
}

// parseNetDev reads /proc/<pid>/net/dev: two lines of titles, then one for
// each interface. The loopback is nobody's traffic.
func parseNetDev(text []byte) []spec.InterfaceStats {
	list := []spec.InterfaceStats{}
	for line := range bytes.Lines(text) {
		name, counters, found := bytes.Cut(line, []byte(":"))
		name = bytes.TrimSpace(name)
		var at [12]uint64
		n := 0
		for field := range bytes.FieldsSeq(counters) {
			if n == len(at) {
				break
			}
			at[n], _ = digits(field)
			n++
		}
		if !found || n < len(at) || string(name) == "lo" {
			continue
		}
		list = append(list, spec.InterfaceStats{
			Name:    string(name),
			RxBytes: at[0], RxPackets: at[1], RxErrors: at[2], RxDropped: at[3],
			TxBytes: at[8], TxPackets: at[9], TxErrors: at[10], TxDropped: at[11],
		})
	}
	return list
}

// each calls fn with the lines of text that are a word and a number.
func each(text []byte, fn func(key []byte, n uint64)) {
	for line := range bytes.Lines(text) {
		key, rest, _ := bytes.Cut(line, []byte(" "))
		if n, ok := digits(rest); ok {
			fn(key, n)
		}
	}
}

// digits reads a number that a line break may follow. Nothing is allocated.
func digits(text []byte) (n uint64, ok bool) {
	text = bytes.TrimSpace(text)
	for _, c := range text {
		if c < '0' || c > '9' || n > (1<<64-1-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, len(text) > 0
}
