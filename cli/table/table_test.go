package table_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/cli/table"
)

type row struct {
	ID, Names string
	labels    map[string]string
}

func (r row) Label(name string) string { return r.labels[name] }

var view = table.View[row]{
	Columns: "{{.ID}}\t{{.Names}}",
	Quiet:   "{{.ID}}",
	Titles:  map[string]string{"ID": "CONTAINER ID"},
}

var rows = []row{
	{ID: "0123456789ab", Names: "web", labels: map[string]string{"team": "a<b"}},
	{ID: "ba9876543210", Names: "größe-ü"},
}

func TestWrite(t *testing.T) {
	for format, want := range map[string]string{
		"": "CONTAINER ID   NAMES\n" +
			"0123456789ab   web\n" +
			"ba9876543210   größe-ü\n",
		"table":                               "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   größe-ü\n",
		"table ":                              "CONTAINER ID   NAMES\n0123456789ab   web\nba9876543210   größe-ü\n",
		`table {{.Names}}\t{{.Label "team"}}`: "NAMES     team\nweb       a<b\ngröße-ü   \n",
		`table {{truncate .ID 4}}\t{{upper .Names}}`: "CONTAINER ID   NAMES\n0123           WEB\nba98           GRÖSSE-Ü\n",
		"json":                             `{"ID":"0123456789ab","Names":"web"}` + "\n" + `{"ID":"ba9876543210","Names":"größe-ü"}` + "\n",
		"{{json .}}":                       `{"ID":"0123456789ab","Names":"web"}` + "\n" + `{"ID":"ba9876543210","Names":"größe-ü"}` + "\n",
		`{{.Names}}\t{{.ID}}`:              "web\t0123456789ab\ngröße-ü\tba9876543210\n",
		"tables {{.Names}}":                "tables web\ntables größe-ü\n",
		`{{title .Names}}{{pad .ID 1 2}}|`: "Web 0123456789ab  |\nGröße-ü ba9876543210  |\n",
		`{{join (split .Names "e") "E"}}`:  "wEb\ngrößE-ü\n",
	} {
		var out bytes.Buffer
		err := view.Write(&out, format, rows)
		want = strings.ReplaceAll(want, "GRÖSSE-Ü", strings.ToUpper("größe-ü"))
		if err != nil || out.String() != want {
			t.Errorf("%q: %v\n got %q\nwant %q", format, err, out.String(), want)
		}
	}
	var out bytes.Buffer
	if err := view.WriteQuiet(&out, rows); err != nil || out.String() != "0123456789ab\nba9876543210\n" {
		t.Errorf("quiet: %v %q", err, out.String())
	}
	out.Reset()
	if err := view.Write(&out, "", nil); err != nil || out.String() != "CONTAINER ID   NAMES\n" {
		t.Errorf("no rows: %v %q", err, out.String())
	}
}

func TestWriteRefuses(t *testing.T) {
	for format, reason := range map[string]string{
		"{{.Colour}}":       "there are .ID .Names",
		"table {{.Colour}}": "there are .ID .Names",
		"{{.ID":             "format:",
		"{{magic .ID}}":     "format:",
	} {
		var out bytes.Buffer
		err := view.Write(&out, format, rows)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), reason) || strings.Contains(err.Error(), ".labels") || out.Len() > 0 {
			t.Errorf("%q: %v, wrote %q", format, err, out.String())
		}
	}
}

func TestShort(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		table.ID("sha256:0123456789abcdef"):            "0123456789ab",
		table.ID("0123"):                               "0123",
		table.Size(7_054_321):                          "7.05MB",
		table.Size(0):                                  "0B",
		table.Memory(512 << 20):                        "512MiB",
		table.Memory(0):                                "0B",
		table.Ago(time.Time{}, now):                    "N/A",
		table.Ago(now.Add(-90*time.Second), now):       "About a minute ago",
		table.Lasting(-time.Second):                    "Less than a second",
		table.At(time.Time{}):                          "",
		table.Ellipsis("größer", 4):                    "grö…",
		table.Ellipsis("abc", 3):                       "abc",
		table.Percent(12.345):                          "12.35%",
		table.Sparkline([]float64{0, 50, 100}, 5, 100): "  ▁▄█",
		table.Sparkline([]float64{1, 2, 3, 4}, 2, 0):   "▆█",
		table.Sparkline(nil, 3, 0):                     "   ",
		table.Sparkline([]float64{500, -3}, 2, 100):    "█▁",
		table.Sparkline([]float64{0, 0}, 2, 0):         "▁▁",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzFormat(f *testing.F) {
	for _, seed := range []string{"table {{.ID}}", "json", "{{json .}}", "{{range .}}", `table\t{{.Names}}`, "{{printf \"%d\" .ID}}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, format string) {
		if len(format) > 200 || strings.Contains(format, "printf") { // widths of gigabytes
			return
		}
		var out bytes.Buffer
		if err := view.Write(&out, format, rows); err != nil && !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}
