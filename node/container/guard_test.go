package container_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/node/snapshot"
	"berth/spec"
)

// A user of the machine must not find a root with set-user-id programs in it.
func TestOnlyRootGetsIntoBundles(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		mode := func(what, root string, want os.FileMode) {
			t.Helper()
			bundle, err := os.Stat(filepath.Dir(root))
			w.ok(err)
			parent, err := os.Stat(filepath.Dir(filepath.Dir(root)))
			w.ok(err)
			if bundle.Mode().Perm() != want || parent.Mode().Perm() != 0o711 {
				t.Errorf("%s: bundle %s in %s", what, bundle.Mode(), parent.Mode())
			}
		}
		g := w.inPod("web1", "/bin/sleep", "9")
		root, err := n.MountRoot(t.Context(), pods, g.ID, snapshot.Key(g.SnapshotKey))
		w.ok(err)
		mode("looked into", root, 0o700)
		w.runs(g)
		mode("runs", root, 0o700)

		// The root of a user namespace is another user to the machine.
		g = w.inPod("mapped1", "/bin/sleep", "9")
		var oci specs.Spec
		w.ok(json.Unmarshal(g.Spec.Value, &oci))
		if oci.Linux == nil {
			oci.Linux = &specs.Linux{}
		}
		oci.Linux.Namespaces = append(oci.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		data, err := json.Marshal(oci)
		w.ok(err)
		g.Spec = &spec.Opaque{Type: g.Spec.Type, Value: data}
		root, err = n.MountRoot(t.Context(), pods, g.ID, snapshot.Key(g.SnapshotKey))
		w.ok(err)
		mode("looked into before a user namespace", root, 0o700)
		w.runs(g)
		mode("runs in a user namespace", root, 0o711)

		created := w.create(spec.ContainerConfig{Name: "own", Image: "busybox", Command: []string{"/bin/sleep", "9"}})
		w.ok(n.Start(t.Context(), created.ID))
		mode("of the node", filepath.Join(filepath.Dir(filepath.Dir(root)), created.ID, "rootfs"), 0o700)
	})
}
