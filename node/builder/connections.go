package builder

import (
	"bufio"
	"bytes"
	"os"
)

// connections counts the clients, also those that wait to be let in.
func (b *Builder) connections() (int, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, err
	}
	return countConnections(table, b.hidden()), nil
}

// countConnections reads the kernel's table of unix sockets: those at the end
// of a server bear the name of the one that it listens on. Its columns are
// number, references, protocol, flags, type, state, inode, name.
func countConnections(table []byte, path string) (count int) {
	const connected = "03"
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		line, named := bytes.CutSuffix(lines.Bytes(), []byte(" "+path))
		fields := bytes.Fields(line)
		if named && len(fields) == 7 && string(fields[5]) == connected {
			count++
		}
	}
	return count
}
