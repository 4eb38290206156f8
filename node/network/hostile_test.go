package network

import (
	"testing"

	"berth/base/errs"
)

// What a client calls a pod is one argument of plugins, never two.
func TestArgumentsOfPlugins(t *testing.T) {
	m := newMachine(t)
	p, use := m.plugins(t, map[string]string{"10-first.conflist": confOne})
	s := m.open(t, use)
	req := m.pod(t, "web")
	for _, name := range []string{"web;K8S_POD_NAMESPACE=kube-system", "web\nx", "web\x00"} {
		req.Name = name
		if _, _, err := s.AttachPod(t.Context(), req); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
	if calls := p.calls(); calls != "" {
		t.Error("plugins are run:", calls)
	}
}
