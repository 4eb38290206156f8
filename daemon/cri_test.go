package daemon

import (
	"testing"

	"berth/base/errs"
	"berth/node/container"
)

// Kubelet tells the cluster only of versions by semver.org.
func TestKubeVersion(t *testing.T) {
	for version, want := range map[string]string{"v1.2.3": "1.2.3", "1.2.3-rc.1+abc": "1.2.3-rc.1+abc", "devel": "0.0.0-devel"} {
		if is := kubeVersion(version); is != want {
			t.Errorf("%s is told as %s, want %s", version, is, want)
		}
	}
}

// A handler names a runtime of the node; no client has a program run by its
// path.
func TestHandlersAreNoPaths(t *testing.T) {
	n := &node{runtimes: &runtimes{byName: map[string]container.Runtime{}}}
	for _, handler := range []string{"/bin/sh", "/proc/self/exe", "../sh", "a/b"} {
		if name, err := n.podRuntime(handler); errs.KindOf(err) != errs.NotFound {
			t.Errorf("%s: %q, %v", handler, name, err)
		}
	}
}
