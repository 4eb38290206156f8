package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"berth/cli/table"
	"berth/cli/terminal"
	"berth/spec"
)

// Scrub shows how a scrub goes: on a terminal by a bar, elsewhere by a line
// for each stage. Damage is a line in either case.
type Scrub struct {
	w    io.Writer // damage goes there
	part string

	screen *mpb.Progress // nil where there is no terminal
	bar    *mpb.Bar
	mu     sync.Mutex // the screen reads while Show writes
	text   string
}

// NewScrub shows a scrub on w.
func NewScrub(w io.Writer) *Scrub {
	s := &Scrub{w: w}
	if !terminal.Is(w) {
		return s
	}
	s.draw(w)
	return s
}

func (s *Scrub) draw(w io.Writer) {
	s.text = "beginning"
	s.screen = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithAutoRefresh())
	s.w = s.screen
	s.bar = s.screen.New(0, mpb.BarStyle().Lbound("[").Rbound("]").Filler("=").Tip(">").Padding(" "),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return s.label() + " " }, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f")))
}

func (s *Scrub) label() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

// Show shows one step.
func (s *Scrub) Show(p spec.ScrubProgress) {
	if s.bar != nil {
		s.mu.Lock()
		s.text = checking(p.Part)
		s.mu.Unlock()
		s.bar.SetTotal(max(p.Total, 1), false)
		s.bar.SetCurrent(p.Bytes)
	} else if p.Part != "" && p.Part != s.part {
		fmt.Fprintln(s.w, checking(p.Part))
	}
	s.part = p.Part
	if p.Damage != nil {
		fmt.Fprintln(s.w, Damage(*p.Damage))
	}
}

// End takes the bar away.
func (s *Scrub) End() {
	if s.screen == nil {
		return
	}
	s.bar.Abort(true)
	s.screen.Wait()
}

func checking(part string) string {
	switch part {
	case "":
		return "checking"
	case "object":
		return "checking files of layers"
	case "metadata":
		return "checking trees of layers"
	}
	return "checking " + part + "s"
}

// Damage says in a line what is damaged, what that touches, and what became of
// it.
func Damage(d spec.Damage) string {
	images := "no image has it"
	if len(d.Images) > 0 {
		short := make([]string, len(d.Images))
		for i, name := range d.Images {
			short[i] = label(name)
		}
		images = "in " + strings.Join(short, ", ")
	}
	text := fmt.Sprintf("damaged: %s %s: %s; %s; ", d.Part, label(d.Name), d.What, images)
	switch {
	case d.Repaired:
		return text + "repaired: " + d.Repair
	case d.Repair == "":
		return text + "not repaired"
	}
	return text + "not repaired: " + d.Repair
}

// Outcome says in a line how a scrub ended.
func Outcome(r spec.ScrubResult) string {
	text := fmt.Sprintf("checked %d parts, %s, in %s: ", r.Checked, table.Size(r.Bytes), r.Ended.Sub(r.Started).Round(10_000_000))
	switch {
	case r.Damaged == 0:
		return text + "nothing is damaged"
	case r.Repaired == r.Damaged:
		return text + fmt.Sprintf("%d damaged, all repaired", r.Damaged)
	}
	return text + fmt.Sprintf("%d damaged, %d repaired", r.Damaged, r.Repaired)
}
