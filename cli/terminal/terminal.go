// Package terminal deals with the terminal at the user's end: whether there
// is one, its size, raw mode that is always undone, and the keys that detach
// from a container.
package terminal

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"berth/spec"
)

// File is stream as a file if it is a terminal.
func File(stream any) (*os.File, bool) {
	file, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return nil, false
	}
	return file, true
}

// Is says whether stream is a terminal.
func Is(stream any) bool {
	_, ok := File(stream)
	return ok
}

// Colors says whether what is written to stream may be colored: on terminals
// that can, and never where NO_COLOR is set (no-color.org).
func Colors(stream any) bool {
	return Is(stream) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Size is the size of the terminal that stream is; zero where it is none.
func Size(stream any) spec.Size {
	file, ok := File(stream)
	if !ok {
		return spec.Size{}
	}
	cols, rows, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return spec.Size{}
	}
	return spec.Size{Rows: uint16(rows), Cols: uint16(cols)}
}

// Raw puts the terminal that stream is into raw mode, and gives the way back,
// which may be called more than once. Where stream is none nothing is done.
func Raw(stream any) (restore func(), err error) {
	file, ok := File(stream)
	if !ok {
		return func() {}, nil
	}
	before, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return func() {}, err
	}
	return sync.OnceFunc(func() { _ = term.Restore(int(file.Fd()), before) }), nil
}

// Resizes tells the size of the terminal that stream is: now, and at each
// change until ctx is done. It is nil where stream is no terminal. A reader
// that is slow gets the newest size.
func Resizes(ctx context.Context, stream any) <-chan spec.Size {
	if !Is(stream) {
		return nil
	}
	sizes := make(chan spec.Size, 1)
	sizes <- Size(stream)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	var owner sync.WaitGroup // ends with ctx, which its owner cancels
	owner.Go(func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				newest(sizes, Size(stream))
			}
		}
	})
	return sizes
}

// newest replaces what nobody has read yet.
func newest(sizes chan spec.Size, size spec.Size) {
	select {
	case <-sizes:
	default:
	}
	sizes <- size
}
