package progress

import (
	"bytes"
	"strings"
	"testing"

	"berth/spec"
)

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

// A bar for each layer, which ends however the whole does.
func TestBars(t *testing.T) {
	for _, done := range []bool{true, false} {
		var out bytes.Buffer
		b := newBars(&out)
		for _, p := range []spec.Progress{
			{Phase: spec.Resolving, Item: "alpine"},
			{Phase: spec.Fetching, Item: digest("a"), Total: 1000},
			{Phase: spec.Fetching, Item: digest("b"), Status: "exists"},
			{Phase: spec.Fetching, Item: digest("a"), Current: 1000, Total: 1000, Status: "complete"},
			{Phase: spec.Unpacking, Item: digest("a"), Current: 10, Total: 5000},
			{Phase: spec.Unpacking, Item: digest("a"), Current: 9000, Total: 5000},
			{Phase: spec.Unpacking, Item: digest("a"), Status: "complete"},
			{Phase: spec.Unpacking, Item: digest("a"), Current: 1},
			{Phase: spec.Fetching, Item: digest("c"), Current: 5},
			{Phase: spec.Pushing, Item: digest("d"), Status: "retrying"},
			{Phase: spec.Done, Status: "complete"},
		} {
			b.Show(p)
		}
		b.End(done)
		if len(b.items) != 4 || !b.items[digest("a")].ended || !b.items[digest("b")].ended {
			t.Errorf("done %v: %d bars", done, len(b.items))
		}
		if b.items[digest("c")].ended != done {
			t.Errorf("done %v: c ended %v", done, b.items[digest("c")].ended)
		}
	}
}

func TestSteps(t *testing.T) {
	for want, p := range map[string]spec.Progress{
		"looking up":         {Phase: spec.Resolving},
		"found":              {Phase: spec.Resolving, Status: "complete"},
		"fetching":           {Phase: spec.Fetching},
		"fetching, waiting":  {Phase: spec.Fetching, Status: "waiting"},
		"fetching, retrying": {Phase: spec.Fetching, Status: "retrying"},
		"fetched":            {Phase: spec.Fetching, Status: "complete"},
		"here already":       {Phase: spec.Fetching, Status: "exists"},
		"there already":      {Phase: spec.Pushing, Status: "exists"},
		"pushed":             {Phase: spec.Pushing, Status: "complete"},
		"unpacking":          {Phase: spec.Unpacking},
		"done":               {Phase: spec.Unpacking, Status: "complete"},
		"polishing":          {Phase: "polishing"},
	} {
		if got := step(p); got != want {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
}

// Damage is a line, and so is each stage; a bar does not stand in the way.
func TestScrub(t *testing.T) {
	steps := []spec.ScrubProgress{
		{Part: "blob", Checked: 1, Bytes: 10, Total: 100},
		{Part: "blob", Checked: 2, Bytes: 20, Total: 100, Damage: &spec.Damage{
			Part: "blob", Name: digest("a"), What: "its content has the digest " + digest("b"), Images: []string{"app:1", digest("c")}, Repaired: true, Repair: "docker.io/library/app",
		}},
		{Part: "object", Checked: 3, Bytes: 30, Total: 100, Damage: &spec.Damage{Part: "object", Name: digest("d"), What: "is missing", Repair: "pull app:1 again: denied"}},
		{Part: "object", Checked: 4, Bytes: 100, Total: 100},
		{Checked: 4, Bytes: 100, Total: 100, Result: &spec.ScrubResult{}},
	}
	var out bytes.Buffer
	s := NewScrub(&out)
	for _, step := range steps {
		s.Show(step)
	}
	s.End()
	want := `checking blobs
damaged: blob aaaaaaaaaaaa: its content has the digest ` + digest("b") + `; in app:1, cccccccccccc; repaired: docker.io/library/app
checking files of layers
damaged: object dddddddddddd: is missing; no image has it; not repaired: pull app:1 again: denied
`
	if out.String() != want {
		t.Errorf("got %s\nwant %s", out.String(), want)
	}
	out.Reset()
	s = &Scrub{}
	s.draw(&out)
	for _, step := range steps {
		s.Show(step)
	}
	s.End()
	if got := out.String(); strings.Count(got, "damaged: ") != 2 {
		t.Errorf("on a terminal: %q", got)
	}
	for want, r := range map[string]spec.ScrubResult{
		"nothing is damaged": {}, "2 damaged, all repaired": {Damaged: 2, Repaired: 2}, "2 damaged, 1 repaired": {Damaged: 2, Repaired: 1},
	} {
		if got := Outcome(r); !strings.HasSuffix(got, ": "+want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
