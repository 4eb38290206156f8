package lcfs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

// What a container has copied up is its own, also when its chain has been
// merged since and stands on another image: overlayfs remembers a file by the
// number that it had in the one before.
func TestCopiedUpBeforeMerge(t *testing.T) {
	for way, how := range map[string]func(*lcfs.Config){"File": func(*lcfs.Config) {}, "Metacopy": withMetacopy} {
		t.Run(way, func(t *testing.T) {
			s := open(t, t.TempDir(), how, func(c *lcfs.Config) { c.Quiet = time.Hour })
			const count = 60
			body := func(i int) string { return strings.Repeat(fmt.Sprint(i), 1000) }
			files := map[string]string{}
			for i := range count {
				files[fmt.Sprintf("f%03d", i)] = body(i)
			}
			layer(t, s, "base", "", files)
			for more := range 10 { // with some of these numbers shift by whole files
				top, child := snapshot.Key(fmt.Sprint("top", more)), snapshot.Key(fmt.Sprint("child", more))
				_, err := s.Prepare(t.Context(), "work", "base", nil)
				must(t, err)
				change(t, s, "work", func(root string) {
					for j := range more + 1 {
						must(t, os.WriteFile(filepath.Join(root, fmt.Sprintf("a%02d", j)), []byte(body(j)), 0o644))
					}
				})
				_, err = s.Commit(t.Context(), top, "work", nil)
				must(t, err)
				_, err = s.Prepare(t.Context(), child, top, nil)
				must(t, err)
				change(t, s, child, func(root string) {
					for i := 0; i < count; i += 2 {
						must(t, os.WriteFile(filepath.Join(root, fmt.Sprintf("f%03d", i)), []byte(body(i)+"changed"), 0o644))
					}
				})
				must(t, s.Settle(t.Context(), top))
				change(t, s, child, func(root string) {
					numbers := map[uint64]bool{}
					for i := range count {
						path, want := filepath.Join(root, fmt.Sprintf("f%03d", i)), body(i)
						if i%2 == 0 {
							want += "changed"
						}
						got, err := os.ReadFile(path)
						if err != nil || string(got) != want {
							t.Fatalf("with %d files more: %d bytes, %v", more+1, len(got), err)
						}
						st, err := os.Stat(path)
						must(t, err)
						number := st.Sys().(*syscall.Stat_t).Ino
						if numbers[number] {
							t.Fatalf("with %d files more: two files have number %d", more+1, number)
						}
						numbers[number] = true
					}
				})
			}
			must(t, s.Close())
		})
	}
}
