package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"berth/base/clock"
)

// bootOf says which life of the state folder this is. What the folder held is
// gone after a reboot, and just so when somebody empties it: records that were
// written before are of an earlier life, and what they tell of does not run.
func bootOf(state string) (string, error) {
	kernel, err := clock.Boot()
	if err != nil {
		return "", err
	}
	file := filepath.Join(state, "boot")
	known, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read which life of the state folder this is: %w", err)
	}
	if of, _, _ := strings.Cut(string(known), "."); of == kernel {
		return string(known), nil
	}
	boot := kernel + "." + rand.Text()
	if _, err := os.Stat(filepath.Join(state, "keeper.pid")); err == nil && len(known) == 0 {
		boot = kernel // a node that did not know of this file was here
	}
	if err := os.WriteFile(file+"~", []byte(boot), 0o600); err != nil {
		return "", fmt.Errorf("note which life of the state folder this is: %w", err)
	}
	return boot, os.Rename(file+"~", file)
}
