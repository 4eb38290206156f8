package option

import (
	"strings"
	"testing"
)

func FuzzLines(f *testing.F) {
	f.Add([]byte("A=1\n#x\nB\n"))
	f.Add([]byte("\xef\xbb\xbfA=\x00\r\n  C D=1"))
	f.Fuzz(func(t *testing.T, content []byte) {
		lines, err := splitLines(content)
		if err != nil {
			return
		}
		for _, line := range lines {
			name, _, _ := strings.Cut(line, "=")
			if line == "" || line[0] == '#' || strings.ContainsAny(name, " \t\n") {
				t.Fatalf("%q of %q", line, content)
			}
		}
	})
}
