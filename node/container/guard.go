package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// In a container's root there may be programs that run as root whoever calls
// them: of its image, or made there by its root for a user of the machine who
// is in league with it. So only root gets into a bundle.

// makeBundle makes a container's bundle, with the folder for its root.
func makeBundle(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil { //nolint:gosec // see admitUsers
		return err
	}
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{dir, 0o700}, {filepath.Join(dir, "rootfs"), 0o711}} {
		if err := os.Mkdir(d.path, d.mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// admitUsers lets the root of a container's user namespace pass through its
// bundle, who is some other user to the machine. So are those then whom
// programs in there run as.
func admitUsers(dir string, list []specs.LinuxNamespace) error {
	if !slices.ContainsFunc(list, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace }) {
		return nil
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // as said
		return fmt.Errorf("make the bundle: %w", err)
	}
	return nil
}

// namespacesOf reads no more of a spec than its namespaces.
func namespacesOf(config []byte) ([]specs.LinuxNamespace, error) {
	var part struct {
		Linux struct {
			Namespaces []specs.LinuxNamespace `json:"namespaces"`
		} `json:"linux"`
	}
	err := json.Unmarshal(config, &part)
	return part.Linux.Namespaces, err
}
