package thread_test

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/thread"
)

// What fn does to its thread, nobody else sees.
func TestOwn(t *testing.T) {
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			err := thread.Own(func() error {
				if unix.Gettid() == unix.Getpid() {
					t.Error("ran on the first thread")
				}
				if err := unix.Unshare(unix.CLONE_FS); err != nil {
					return err
				}
				if err := unix.Chdir("/"); err != nil {
					return err
				}
				runtime.Gosched()
				return wrong
			})
			if !errors.Is(err, wrong) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if cwd, err := os.Readlink("/proc/self/cwd"); err != nil || cwd != before {
		t.Errorf("/proc/self/cwd is %s (%v), want %s", cwd, err, before)
	}
}
