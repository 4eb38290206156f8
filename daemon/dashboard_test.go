package daemon

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"berth/spec"
)

// exported are the names and labels of all that Prometheus is told.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	m := newMetrics(spec.Version{})
	m.countScrubs(nil)
	var all []*prometheus.Desc
	descs := make(chan *prometheus.Desc, 1000)
	m.registry.Describe(descs)
	close(descs)
	for d := range descs {
		all = append(all, d)
	}
	for _, collector := range []any{newCensus(t.Context(), nil, nil), podDescs()} {
		v := reflect.ValueOf(collector).Elem()
		for _, field := range v.Fields() {
			if field.Type() == reflect.TypeFor[*prometheus.Desc]() {
				all = append(all, (*prometheus.Desc)(field.UnsafePointer()))
			}
		}
	}
	describes := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	names := map[string][]string{}
	for _, d := range all {
		found := describes.FindStringSubmatch(d.String())
		if found == nil {
			t.Fatalf("what is %s?", d)
		}
		names[found[1]] = strings.Split(found[2], ",")
	}
	return names
}

// The dashboard asks only for what there is, and shows labels that there are.
func TestDashboardAsksForWhatThereIs(t *testing.T) {
	text, err := os.ReadFile("../packaging/grafana/berth.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID, Title string
		Panels     []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr, LegendFormat string }
			GridPos struct{ H, W, X, Y int }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	names := exported(t)
	asked := map[string]bool{}
	metric := regexp.MustCompile(`([a-z][a-z_]+)\{instance=~"\$instance"(?:,([a-z]+)=)?`)
	shown := regexp.MustCompile(`\{\{([a-z]+)\}\}`)
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d: %+v", p.ID, p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			found := metric.FindAllStringSubmatch(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("%s asks for nothing: %s", p.Title, target.Expr)
			}
			if strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") {
				t.Errorf("%s: parentheses of %s", p.Title, target.Expr)
			}
			labels := []string{"instance", "le"}
			for _, m := range found {
				name := strings.TrimSuffix(m[1], "_bucket")
				has, known := names[name]
				if !known {
					t.Errorf("%s asks for %s, which no node exports", p.Title, m[1])
				}
				labels = append(labels, has...)
				asked[name] = true
				if m[2] != "" && !slices.Contains(has, m[2]) {
					t.Errorf("%s: %s has no label %s", p.Title, name, m[2])
				}
			}
			for _, label := range shown.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(labels, label[1]) {
					t.Errorf("%s shows the label %s of %v", p.Title, label[1], labels)
				}
			}
		}
	}
	for name := range names {
		if strings.HasPrefix(name, "berth_cri_") || strings.HasPrefix(name, "berth_pod") || strings.HasPrefix(name, "berth_image_pulls") {
			if !asked[name] {
				t.Errorf("nobody sees %s", name)
			}
		}
	}
	if dashboard.UID == "" || len(asked) < 20 {
		t.Errorf("%d metrics are asked for", len(asked))
	}
}
