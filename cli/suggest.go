package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"berth/base/errs"
)

// suggesting is how long the node may take to find names for a hint.
const suggesting = time.Second

// closest are the names that one could have meant by name, best first: at
// most three, and none that is far off.
func closest(name string, names []string) []string {
	type candidate struct {
		name string
		far  int
	}
	limit := max(1, min(3, len(name)/2))
	var near []candidate
	for _, n := range names {
		far := distance(strings.ToLower(name), strings.ToLower(n))
		if len(name) >= 2 && strings.HasPrefix(n, name) {
			far = min(far, 1)
		}
		if far <= limit && n != name {
			near = append(near, candidate{n, far})
		}
	}
	slices.SortStableFunc(near, func(a, b candidate) int { return a.far - b.far })
	var out []string
	for _, c := range near {
		if c.far > near[0].far || len(out) == 3 {
			break
		}
		if !slices.Contains(out, c.name) {
			out = append(out, c.name)
		}
	}
	return out
}

// distance counts the letters to add, drop, change or swap with a neighbor
// to get from a to b.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := range x {
		row[0] = i + 1
		for j := range y {
			change := last[j]
			if x[i] != y[j] {
				change++
			}
			row[j+1] = min(change, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}

// lookup lists names of one sort that the node has.
type lookup func(ctx context.Context) ([]string, error)

// meant adds to an error that ref was not found which names come close.
// seeAll is the verb that lists them.
func meant(ctx context.Context, err error, ref, seeAll string, all lookup) error {
	if err == nil || !errors.Is(err, errs.NotFound) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), suggesting)
	defer cancel()
	names, listErr := all(ctx)
	if listErr != nil {
		return err
	}
	if near := closest(ref, names); len(near) > 0 {
		return errs.New(errs.NotFound, "%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return errs.New(errs.NotFound, "%w; berth %s lists what there is", err, seeAll)
}

// meantContainer is meant for the container ref, unless something else was
// not found.
func (p *program) meantContainer(ctx context.Context, err error, ref string) error {
	if err == nil || !errors.Is(err, errs.NotFound) {
		return err
	}
	if _, getErr := p.node().ContainerGet(ctx, ref); !errors.Is(getErr, errs.NotFound) {
		return err // it is there: what is missing is something else
	}
	return meant(ctx, err, ref, "ps -a", p.containerNames)
}

func (p *program) meantImage(ctx context.Context, err error, ref string) error {
	return meant(ctx, err, ref, "images", p.imageNames)
}

func (p *program) meantNetwork(ctx context.Context, err error, ref string) error {
	return meant(ctx, err, ref, "network ls", p.networkNames)
}

func (p *program) meantVolume(ctx context.Context, err error, ref string) error {
	return meant(ctx, err, ref, "volume ls", p.volumeNames)
}
