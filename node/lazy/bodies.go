package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"berth/base/errs"
	"berth/image/tree"
	"berth/node/snapshot"
)

// bodies is what the process knows of bodies: which are missing, and who waits
// for one. It belongs to no connection, so that nodes come and go.
type bodies struct {
	folder   int // of objects
	deadline time.Duration
	log      *slog.Logger

	mu      sync.Mutex
	missing map[tree.Digest]int64
	named   chan struct{} // closed while all that is missing is known
	retired bool
	waiting map[tree.Digest]*wait
	want    func(tree.Digest) // asks node; nil while there is none
}

// wait is for one body, by any number of openers.
type wait struct {
	openers int
	done    chan struct{} // closed when node has answered
	err     error         // set before
}

func newBodies(folder int, deadline time.Duration, log *slog.Logger) *bodies {
	return &bodies{
		folder: folder, deadline: deadline, log: log, missing: map[tree.Digest]int64{},
		named: make(chan struct{}), waiting: map[tree.Digest]*wait{},
	}
}

// size says how long a body is that is missing, or was when a mount was made.
func (b *bodies) size(ctx context.Context, d tree.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, b.deadline)
	defer cancel()
	for {
		b.mu.Lock()
		size, missing := b.missing[d]
		named, retired := b.named, b.retired
		b.mu.Unlock()
		if missing {
			return size, nil
		}
		known := retired || isClosed(named) // asked before the folder, so that nothing falls between
		if file, err := openBody(b.folder, d); err == nil {
			defer file.Close()
			st, err := file.Stat()
			if err != nil {
				return 0, err
			}
			return st.Size(), nil
		} else if known || !errors.Is(err, errs.NotFound) {
			return 0, err
		}
		select {
		case <-named:
		case <-ctx.Done():
			return 0, b.late(ctx, d)
		}
	}
}

// open opens a body once it is here.
func (b *bodies) open(ctx context.Context, d tree.Digest) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, b.deadline)
	defer cancel()
	for pause := time.Duration(0); ; pause = min(2*pause+10*time.Millisecond, time.Second) {
		file, err := openBody(b.folder, d)
		if err == nil || !errors.Is(err, errs.NotFound) {
			return file, err
		}
		if !snapshot.Rest(ctx, pause) { // node said that it is here, and it is not
			return nil, b.late(ctx, d)
		}
		if gone, err := b.wait(ctx, d); err != nil {
			return nil, err
		} else if gone {
			return openBody(b.folder, d) // what is not here now never will be
		}
	}
}

// wait returns when node says that the body is here, or that it will answer
// no more.
func (b *bodies) wait(ctx context.Context, d tree.Digest) (retired bool, err error) {
	b.mu.Lock()
	if b.retired {
		b.mu.Unlock()
		return true, nil
	}
	w := b.waiting[d]
	if w == nil {
		w = &wait{done: make(chan struct{})}
		b.waiting[d] = w
		if b.want != nil {
			b.want(d)
		}
	}
	w.openers++
	b.mu.Unlock()
	defer b.leave(d, w)
	select {
	case <-w.done:
		return false, w.err
	case <-ctx.Done():
		return false, b.late(ctx, d)
	}
}

func (b *bodies) leave(d tree.Digest, w *wait) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.openers--; w.openers == 0 && b.waiting[d] == w {
		delete(b.waiting, d)
	}
}

// late tells who gave up from a body that did not come.
func (b *bodies) late(ctx context.Context, d tree.Digest) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled
	}
	b.log.WarnContext(ctx, "a body did not come in time", "digest", fmt.Sprintf("%x", d))
	return errs.New(errs.Timeout, "body %x did not come in time", d)
}

// answer wakes who waits for a body.
func (b *bodies) answer(d tree.Digest, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.missing, d)
	}
	if w := b.waiting[d]; w != nil {
		w.err = err
		delete(b.waiting, d)
		close(w.done)
	}
}

func (b *bodies) add(m Missing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.missing[m.Object] = m.Size
}

// anew forgets what the last node declared: the next says it all again.
func (b *bodies) anew() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if isClosed(b.named) {
		b.named = make(chan struct{})
	}
	clear(b.missing)
}

// allNamed says that what is not missing now never will be a surprise.
func (b *bodies) allNamed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !isClosed(b.named) {
		close(b.named)
	}
}

// retire: from now on nothing is missing, and no node will come.
func (b *bodies) retire() {
	b.allNamed()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retired, b.want = true, nil
	for _, w := range b.waiting {
		close(w.done) // it may be here by now
	}
	clear(b.waiting)
}

// connected hands over who asks node, and asks again what is waited for. nil:
// there is no node.
func (b *bodies) connected(want func(tree.Digest)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired {
		return
	}
	if b.want = want; want == nil {
		return
	}
	for d := range b.waiting {
		want(d)
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
