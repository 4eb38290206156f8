package progress

import (
	"io"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"berth/spec"
)

// bars shows an item a bar.
type bars struct {
	screen *mpb.Progress

	mu    sync.Mutex // the screen reads while Show writes
	items map[string]*item
}

type item struct {
	bar   *mpb.Bar
	phase spec.Phase
	text  string
	ended bool
}

func newBars(w io.Writer) *bars {
	return &bars{screen: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40)), items: map[string]*item{}}
}

// Show moves the bar of an item, which goes back to its begin when the next
// phase does.
func (b *bars) Show(p spec.Progress) {
	if p.Item == "" || p.Phase == spec.Done || p.Phase == spec.Resolving || p.Error != nil {
		return
	}
	b.mu.Lock()
	it := b.items[p.Item]
	if it == nil {
		it = &item{}
		b.items[p.Item] = it
	}
	it.phase, it.text = p.Phase, step(p)
	ended := it.ended
	b.mu.Unlock()
	if ended {
		return
	}
	if it.bar == nil {
		it.bar = b.newBar(label(p.Item), it)
	}
	if p.Total > 0 {
		it.bar.SetTotal(p.Total, false)
		it.bar.SetCurrent(min(p.Current, p.Total))
	} else if p.Current > 0 {
		it.bar.SetCurrent(p.Current)
	}
	if p.Status == "exists" || p.Status == "mounted" || p.Status == "complete" && p.Phase != spec.Fetching {
		b.finish(it)
	}
}

func (b *bars) newBar(name string, it *item) *mpb.Bar {
	bar := b.screen.New(0, mpb.BarStyle().Lbound("[").Rbound("]").Filler("=").Tip(">").Padding(" "),
		mpb.BarFillerOnComplete(""),
		mpb.PrependDecorators(
			decor.Name(name+" ", decor.WCSyncSpaceR),
			decor.Any(func(decor.Statistics) string { return b.text(it) + " " }, decor.WCSyncSpaceR),
		),
		mpb.AppendDecorators(decor.OnComplete(decor.CountersKiloByte("% .1f / % .1f"), "")),
	)
	return bar
}

func (b *bars) text(it *item) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return it.text
}

func (b *bars) finish(it *item) {
	b.mu.Lock()
	it.ended = true
	b.mu.Unlock()
	it.bar.SetTotal(-1, true)
}

// End leaves the bars of what was done, and takes away the others.
func (b *bars) End(done bool) {
	for _, it := range b.items {
		if it.bar == nil || it.ended {
			continue
		}
		if !done {
			it.bar.Abort(false)
			continue
		}
		b.mu.Lock()
		it.text = "done"
		b.mu.Unlock()
		b.finish(it)
	}
	b.screen.Wait()
}
