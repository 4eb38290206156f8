package oci

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// Begun says whether the container's process has become the program that it is
// to run. Until then it is the runtime's: runc calls it so, and crun's has the
// command line that it was started with.
func (r *Runtime) Begun(id string) bool {
	p, found := r.keeper.Process(id)
	if !found || p.Exit != nil {
		return true
	}
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Pid), "comm"))
	return err != nil || !bytes.HasPrefix(name, []byte("runc:[")) && !commandNames(p.Pid, r.launching(id))
}
