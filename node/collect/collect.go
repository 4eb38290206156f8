// Package collect sweeps away what stands for a container that there is not:
// the remains of a crash. Every room knows what it holds, on disk and in the
// kernel, by the id of the container it is for; what nobody claims goes.
//
// It is safe to sweep while containers come and go: what is found is looked up
// after it was found, and a container claims its id before anything of it is
// made.
package collect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
)

// Room is one kind of things that stand for containers.
type Room struct {
	Name string
	// Found lists the ids of the containers of which there is something.
	Found func(ctx context.Context) ([]string, error)
	// Discard removes all there is of one. Nothing is no error.
	Discard func(ctx context.Context, id string) error
}

// Sweep discards, room by room, what is for ids that nobody claims. What
// cannot be removed is told, and the rest is removed still. It returns how
// many things went.
func Sweep(ctx context.Context, claims func(id string) bool, log *slog.Logger, rooms ...Room) (int, error) {
	swept := 0
	var failed error
	for _, room := range rooms {
		found, err := room.Found(ctx)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("what there is of %s: %w", room.Name, err))
		}
		for _, id := range found {
			if err := ctx.Err(); err != nil {
				return swept, errors.Join(failed, err)
			}
			if claims(id) {
				continue
			}
			if err := room.Discard(ctx, id); err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s of %s: %w", room.Name, id, err))
				continue
			}
			log.InfoContext(ctx, "swept away what a crash had left", "kind", room.Name, "id", id)
			swept++
		}
	}
	return swept, failed
}

// Names finds ids as the names in a folder; one that is not there is empty.
func Names(dir string) func(context.Context) ([]string, error) {
	return func(context.Context) ([]string, error) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, err
	}
}
