// Package progress shows how moving an image goes: on a terminal one bar for
// each layer, which says what is being done with it; elsewhere one line for
// each step, without numbers that change.
package progress

import (
	"fmt"
	"io"
	"strings"

	"berth/cli/table"
	"berth/cli/terminal"
	"berth/spec"
)

// Display shows progress as it is told.
type Display interface {
	Show(spec.Progress)
	// End comes once, when all is told; done says whether it went well.
	End(done bool)
}

// New shows progress on w in the way that suits it.
func New(w io.Writer) Display {
	if terminal.Is(w) {
		return newBars(w)
	}
	return &lines{w: w, last: map[string]string{}}
}

// lines shows each step of each item once.
type lines struct {
	w    io.Writer
	last map[string]string // what was said of an item last
}

func (l *lines) Show(p spec.Progress) {
	if p.Item == "" || p.Phase == spec.Done || p.Error != nil {
		return
	}
	text := step(p)
	if l.last[p.Item] == text {
		return
	}
	l.last[p.Item] = text
	if p.Total > 0 && p.Status == "" {
		text += " (" + table.Size(p.Total) + ")"
	}
	fmt.Fprintf(l.w, "%s: %s\n", label(p.Item), text)
}

func (l *lines) End(bool) {}

// step says what is being done with an item.
func step(p spec.Progress) string {
	verb := map[spec.Phase]string{
		spec.Resolving: "looking up", spec.Fetching: "fetching", spec.Unpacking: "unpacking", spec.Pushing: "pushing",
	}[p.Phase]
	if verb == "" {
		verb = string(p.Phase)
	}
	switch p.Status {
	case "":
		return verb
	case "exists":
		if p.Phase == spec.Pushing {
			return "there already"
		}
		return "here already"
	case "complete":
		return completed(p.Phase)
	}
	return verb + ", " + p.Status
}

func completed(phase spec.Phase) string {
	switch phase {
	case spec.Resolving:
		return "found"
	case spec.Fetching:
		return "fetched"
	case spec.Pushing:
		return "pushed"
	}
	return "done"
}

// label is a short name of an item: a digest or a reference.
func label(item string) string {
	if strings.HasPrefix(item, "sha256:") || strings.HasPrefix(item, "sha512:") {
		return table.ID(item)
	}
	return item
}
