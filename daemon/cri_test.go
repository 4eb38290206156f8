package daemon

import "testing"

// Kubelet tells the cluster only of versions by semver.org.
func TestKubeVersion(t *testing.T) {
	for version, want := range map[string]string{"v1.2.3": "1.2.3", "1.2.3-rc.1+abc": "1.2.3-rc.1+abc", "devel": "0.0.0-devel"} {
		if is := kubeVersion(version); is != want {
			t.Errorf("%s is told as %s, want %s", version, is, want)
		}
	}
}
