package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// longestLine is how much of a line of a shim's log is passed on.
const longestLine = 4096

// listen makes the FIFO that the shim logs to, and passes its lines on. It is
// there before the shim is, which waits for somebody to read.
func (t *task) listen() error {
	path := filepath.Join(t.Bundle, "log")
	if err := unix.Mkfifo(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("log of a shim: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("log of a shim: %w", err)
	}
	t.log = f
	d := t.driver
	d.work.Go(func() {
		lines := bufio.NewReaderSize(f, longestLine)
		for rest := false; ; {
			line, more, err := lines.ReadLine()
			if err != nil {
				return // closed: FIFOs that are held open at both ends have no other end
			}
			if !rest && len(line) > 0 {
				d.Log.Debug("a shim says", "container", t.ID, "line", string(line))
			}
			rest = more
		}
	})
	return nil
}
