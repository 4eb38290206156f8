// Package thread runs what changes its thread for good: namespaces, identity,
// working directory.
package thread

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Own runs fn on a thread that nothing else will ever run on, and waits for
// it. It is never the process's first thread: that one cannot end, and
// /proc/self shows its namespaces and its folder as those of the process.
func Own(fn func() error) (err error) {
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // held until another has been used
			err = Own(fn)
			return
		}
		err = fn() // and never unlocked: the thread ends with the goroutine
	})
	done.Wait()
	return err
}
