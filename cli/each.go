package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"berth/base/errs"
)

// atOnce is how many containers one command line works on at a time.
const atOnce = 16

// each does act for all refs, some at a time, and prints each that it is done
// for, in their order. What fails does not stop the others; it is said one a
// line, and the verb then fails.
func (p *program) each(ctx context.Context, verb string, refs []string, act func(ctx context.Context, ref string) error) error {
	results := make([]chan error, len(refs))
	turns := make(chan struct{}, atOnce)
	var workers sync.WaitGroup
	defer workers.Wait()
	for i, ref := range refs {
		results[i] = make(chan error, 1)
		workers.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			results[i] <- act(ctx, ref)
		})
	}
	var failed []error
	for i, ref := range refs {
		if err := <-results[i]; err != nil {
			failed = append(failed, err)
			if errors.Is(err, errs.Unavailable) || ctx.Err() != nil {
				break // it would be the same for the others
			}
			continue
		}
		fmt.Fprintln(p.stdout, ref)
	}
	if len(failed) < 2 {
		return errors.Join(failed...)
	}
	for _, err := range failed {
		fmt.Fprintf(p.stderr, "berth: %s: %v\n", verb, err)
	}
	return &exitError{code: codeFailed}
}

// eachContainer is each with names that come close for those not found.
func (p *program) eachContainer(ctx context.Context, verb string, refs []string, act func(ctx context.Context, ref string) error) error {
	return p.each(ctx, verb, refs, func(ctx context.Context, ref string) error {
		return p.meantContainer(ctx, act(ctx, ref), ref)
	})
}
