package container_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"berth/base/errs"
	"berth/spec"
)

func (w *world) names(all bool, filter spec.Filter) []string {
	w.t.Helper()
	list, err := w.node.List(w.t.Context(), all, filter)
	w.ok(err)
	names := []string{}
	for _, c := range list {
		names = append(names, c.Name)
	}
	return names
}

func TestListAndFilters(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		for i, name := range []string{"c1", "c2", "c3", "c4"} {
			cfg := config("/bin/sleep", "1000")
			cfg.Name, cfg.Labels = name, map[string]string{"n": name, "even": fmt.Sprint(i%2 == 1)}
			switch name {
			case "c1":
				cfg.Mounts = []spec.MountPoint{{Type: "volume", Source: "vol", Target: "/vol"}}
			case "c2":
				cfg.Network = spec.NetworkChoice{Mode: "net2", Ports: []spec.PortMapping{{ContainerPort: 8000, Range: 5}}}
			case "c3":
				cfg.Health = &spec.HealthConfig{Test: []string{"CMD", "/bin/true"}}
			}
			w.create(cfg)
			time.Sleep(time.Millisecond)
		}
		w.ok(n.Start(t.Context(), "c2"))
		w.ok(n.Start(t.Context(), "c3"))
		w.ok(n.Start(t.Context(), "c4"))
		w.runtime.End(w.get("c4").ID, 9)
		w.wait("c4", "")

		for _, tt := range []struct {
			all    bool
			filter spec.Filter
			want   []string
		}{
			{true, nil, []string{"c4", "c3", "c2", "c1"}},
			{false, nil, []string{"c3", "c2"}},
			{true, spec.Filter{"name": {"^c[12]$"}}, []string{"c2", "c1"}},
			{true, spec.Filter{"name": {"^/c1$", "c3"}}, []string{"c3", "c1"}},
			{true, spec.Filter{"id": {w.get("c1").ID[:10]}}, []string{"c1"}},
			{true, spec.Filter{"label": {"even=true", "n=c2"}}, []string{"c2"}},
			{true, spec.Filter{"label": {"of"}}, []string{"c4", "c3", "c2", "c1"}},
			{false, spec.Filter{"status": {"created", "exited"}}, []string{"c4", "c1"}},
			{false, spec.Filter{"exited": {"9"}}, []string{"c4"}},
			{true, spec.Filter{"ancestor": {"busybox"}}, []string{"c4", "c3", "c2", "c1"}},
			{true, spec.Filter{"ancestor": {"other"}}, []string{}},
			{true, spec.Filter{"before": {"c3"}}, []string{"c2", "c1"}},
			{true, spec.Filter{"since": {"c3"}}, []string{"c4"}},
			{true, spec.Filter{"network": {"net2"}}, []string{"c2"}},
			{true, spec.Filter{"volume": {"vol"}}, []string{"c1"}},
			{true, spec.Filter{"volume": {"/vol"}}, []string{"c1"}},
			{true, spec.Filter{"health": {"starting"}}, []string{"c3"}},
			{true, spec.Filter{"publish": {"8004"}}, []string{"c2"}},
			{true, spec.Filter{"publish": {"8005"}}, []string{}},
			{true, spec.Filter{"publish": {"8000/udp"}}, []string{}},
			{true, spec.Filter{"expose": {"79-81/tcp"}}, []string{"c4", "c3", "c2", "c1"}},
		} {
			if got := w.names(tt.all, tt.filter); !slices.Equal(got, tt.want) {
				t.Errorf("%v %v: %v, want %v", tt.all, tt.filter, got, tt.want)
			}
		}
		for key, value := range map[string]string{"colour": "red", "status": "asleep", "exited": "x", "health": "fine", "publish": "x", "name": "(", "before": ""} {
			if _, err := n.List(t.Context(), true, spec.Filter{key: {value}}); errs.KindOf(err) != errs.Invalid {
				t.Errorf("%s=%s: %v, want invalid", key, value, err)
			}
		}

		stats, err := n.Stats(t.Context(), nil)
		if err != nil || len(stats) != 2 || stats[0].Name != "c3" || stats[0].Pids.Current == 0 {
			t.Errorf("stats %+v, %v", stats, err)
		}
		stats, err = n.Stats(t.Context(), []string{"c1"})
		if err != nil || len(stats) != 1 || stats[0].Pids.Current != 0 {
			t.Errorf("stats %+v, %v", stats, err)
		}

		_, err = n.Prune(t.Context(), spec.Filter{"name": {"c1"}})
		wantKind(t, err, errs.Invalid)
		pruned, err := n.Prune(t.Context(), spec.Filter{"label": {"n=c1"}})
		if err != nil || len(pruned.Removed) != 1 || pruned.Reclaimed != 7 {
			t.Errorf("pruned %+v, %v", pruned, err)
		}
		pruned, err = n.Prune(t.Context(), spec.Filter{"until": {"1h"}})
		if err != nil || len(pruned.Removed) != 0 {
			t.Errorf("pruned %+v, %v", pruned, err)
		}
		if _, err = n.Prune(t.Context(), nil); err != nil || !slices.Equal(w.names(true, nil), []string{"c3", "c2"}) {
			t.Errorf("left %v, %v", w.names(true, nil), err)
		}
	})
}

func TestNetworksOfARunningContainer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, n *node) {
		ctx := t.Context()
		cfg := config("/bin/sleep", "1000")
		cfg.Network.Mode = ""
		c := w.start(cfg)
		w.ok(n.Connect(ctx, c.ID, "other", spec.EndpointConfig{Aliases: []string{"x"}}))
		wantKind(t, n.Connect(ctx, c.ID, "other", spec.EndpointConfig{}), errs.Exists)
		if got := w.get(c.ID); len(got.Networks) != 2 || got.Config.Network.Endpoints[0].Aliases[0] != "x" {
			t.Errorf("networks %+v", got.Networks)
		}
		w.ok(n.Disconnect(ctx, c.ID, "bridge"))
		w.ok(n.Disconnect(ctx, c.ID, "other"))
		wantKind(t, n.Disconnect(ctx, c.ID, "other"), errs.NotFound)
		w.ok(n.Connect(ctx, c.ID, "third", spec.EndpointConfig{}))
		if got := w.get(c.ID); len(got.Networks) != 1 || got.Config.Network.Mode != "third" {
			t.Errorf("networks %+v", got.Networks)
		}
		shared := config("/bin/sleep", "1000")
		shared.Network.Mode = "host"
		wantKind(t, n.Connect(ctx, w.start(shared).ID, "other", spec.EndpointConfig{}), errs.Conflict)
		w.tidy()
		w.wantNothing()
	})
}
