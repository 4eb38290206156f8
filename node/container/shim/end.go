package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	types "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/base/errs"
)

// Delete ends what still runs, and has the shim put the container away. The
// shim ends with the last of its containers; where it does not, or does not
// answer, it is killed. Its end stays known until it is forgotten.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	r.driver.mu.Lock()
	t := r.driver.tasks[id]
	if t != nil && !t.settled { // who is making it takes it away
		t = nil
	}
	r.driver.mu.Unlock()
	if t == nil || t.removed() {
		return nil
	}
	if err := t.remove(ctx); err != nil {
		return fmt.Errorf("runtime %s: delete %s: %w", r.name, id, err)
	}
	return nil
}

// discard takes away a container that was given up half made. Nobody is told
// of its end.
func (d *Driver) discard(ctx context.Context, t *task) error {
	err := t.remove(ctx)
	return errors.Join(err, d.drop(t))
}

// remove takes a container away, with its shim if that has no other.
func (t *task) remove(ctx context.Context) error {
	d := t.driver
	unlock, err := d.ends.lock(ctx, t.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if t.removed() {
		return nil
	}
	answered := t.dismiss(ctx)
	if err := d.leave(ctx, t, answered); err != nil {
		return err
	}
	t.bury(ctx, time.Now(), answered == nil)
	if err := t.clear(); err != nil {
		return err
	}
	if err := t.note(func(r *record) { r.Deleted, r.Execs = true, nil }); err != nil {
		return err
	}
	if t.snapshot().Forgot {
		return d.drop(t)
	}
	return nil
}

// dismiss has the shim end and delete the container.
func (t *task) dismiss(ctx context.Context) error {
	if t.shim == nil || t.shim.dead() {
		return errs.New(errs.Unavailable, "the shim is gone")
	}
	if !t.init.over() {
		if err := t.kill(ctx); err != nil {
			return err
		}
	}
	var answer taskapi.DeleteResponse
	err := t.shim.call(ctx, t.driver.Limits.Call, "Delete", &taskapi.DeleteRequest{ID: t.Name}, &answer)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	if err == nil { // also where nobody waits for its end
		t.init.ended(int(answer.GetExitStatus()), true, answer.GetExitedAt().AsTime())
	}
	return nil
}

// kill ends the container, be it frozen, and waits for that. One that the shim
// does not know, each in its own words, has nothing to end.
func (t *task) kill(ctx context.Context) error {
	d := t.driver
	var state taskapi.StateResponse
	err := t.shim.call(ctx, d.Limits.Call, "State", &taskapi.StateRequest{ID: t.Name}, &state)
	if unreliable(err) {
		return err
	}
	if err != nil || state.GetStatus() == types.Status_STOPPED {
		return nil
	}
	if err := t.init.kill(ctx, syscall.SIGKILL, true); err != nil && !errors.Is(err, errs.NotFound) {
		// Some cannot signal all processes of a container.
		if err := t.init.kill(ctx, syscall.SIGKILL, false); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	if s := state.GetStatus(); s == types.Status_PAUSED || s == types.Status_PAUSING {
		if err := t.init.call(ctx, "Resume", &taskapi.ResumeRequest{ID: t.Name}); err != nil {
			d.Log.DebugContext(ctx, "cannot thaw a container that was killed", "container", t.ID, "error", err)
		}
	}
	if !t.init.followed { // nobody waits for what was never made
		return nil
	}
	patience := time.NewTimer(d.Limits.Kill)
	defer patience.Stop()
	select {
	case <-t.init.done:
		return nil
	case <-t.shim.gone:
		return errs.New(errs.Unavailable, "the shim is gone")
	case <-patience.C:
		return fmt.Errorf("process %d of container %s does not end", t.init.pid(), t.ID)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unreliable says whether an error is one of a shim that nothing can be asked
// of any more.
func unreliable(err error) bool {
	return errors.Is(err, errs.Timeout) || errors.Is(err, errs.Unavailable)
}

// leave takes the container from those that its shim is there for. The shim
// is shut down with the last, and killed where it cannot be relied on.
func (d *Driver) leave(ctx context.Context, t *task, trouble error) error {
	unlock, err := d.starts.lock(ctx, t.Namespace+"/"+t.Group)
	if err != nil {
		return err
	}
	defer unlock()
	s := t.shim
	if s == nil { // start failed: it may have left something all the same
		d.killStrays(t)
		d.removeSockets(ctx, t)
		return nil
	}
	if trouble != nil && ctx.Err() != nil {
		return ctx.Err() // it may have been our haste
	}
	d.mu.Lock()
	delete(s.tasks, t)
	last := len(s.tasks) == 0
	if last {
		s.leaving = true
	}
	d.mu.Unlock()
	hung := !s.dead() && unreliable(trouble)
	if hung {
		d.Log.WarnContext(ctx, "a shim is killed", "container", t.ID, "error", trouble)
	}
	if !last && !hung {
		return nil
	}
	if !hung && !s.dead() {
		d.shutDown(ctx, s, t)
	}
	if !s.dead() || trouble != nil {
		d.killShim(s, t)
	}
	if !last { // the others hear of it as of any death
		return nil
	}
	err = s.close()
	d.removeSockets(ctx, t)
	return err
}

// shutDown asks a shim to end, and waits for it.
func (d *Driver) shutDown(ctx context.Context, s *shim, t *task) {
	err := s.call(ctx, d.Limits.Shutdown, "Shutdown", &taskapi.ShutdownRequest{ID: t.Name}, &emptypb.Empty{})
	if err != nil && !errors.Is(err, errs.Unavailable) {
		d.Log.DebugContext(ctx, "a shim does not shut down", "container", t.ID, "error", err)
		return
	}
	patience := time.NewTimer(d.Limits.Shutdown)
	defer patience.Stop()
	select {
	case <-s.gone:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// lost follows the death of a shim: its containers have ended.
func (d *Driver) lost(s *shim, tasks []*task) {
	at := time.Now()
	ctx := context.WithoutCancel(s.life)
	d.killShim(s, tasks[0]) // it may have closed its socket and gone on
	removeSocket(ctx, s.address)
	var all sync.WaitGroup
	for _, t := range tasks {
		all.Go(func() {
			unlock, err := d.ends.lock(ctx, t.ID)
			if err != nil {
				return
			}
			defer unlock()
			if t.removed() {
				return
			}
			d.Log.WarnContext(ctx, "the shim of a container has died", "container", t.ID, "runtime", t.Runtime)
			t.bury(ctx, at, false)
		})
	}
	all.Wait()
}

// bury has the shim's program put away what is left of a container whose shim
// does not run it any more, and tells the ends that nobody has told. at is
// when the shim was there last: what it noted before is so.
func (t *task) bury(ctx context.Context, at time.Time, deleted bool) {
	t.mu.Lock()
	done := t.cleaned
	t.cleaned = true
	t.mu.Unlock()
	code, known, when := unknownCode, false, at
	if !done {
		answer, err := t.driver.cleanUp(ctx, t.invocation())
		switch {
		case err != nil && deleted:
			t.driver.Log.DebugContext(ctx, "nothing was left of a container", "container", t.ID, "error", err)
		case err != nil:
			t.driver.Log.WarnContext(ctx, "cannot put away what a shim left", "container", t.ID, "error", err)
			t.init.end()
		case answer.GetExitedAt().AsTime().Unix() > 0 && answer.GetExitedAt().AsTime().Before(at):
			code, known, when = int(answer.GetExitStatus()), true, answer.GetExitedAt().AsTime()
		}
	}
	for _, p := range t.processes()[1:] {
		p.ended(unknownCode, false, at)
	}
	t.init.ended(code, known, when)
}

// clear removes what the driver has made for the container.
func (t *task) clear() error {
	d := t.driver
	t.letGo()
	var failed error
	if t.Mounted {
		failed = unmount(filepath.Join(t.Bundle, "rootfs"))
	}
	for id := range t.snapshot().Execs {
		failed = errors.Join(failed, os.RemoveAll(d.streams(id)))
	}
	failed = errors.Join(failed, os.RemoveAll(d.streams(t.ID)))
	gone := []string{filepath.Join(t.Bundle, "log")}
	if link := t.named(); link != t.Bundle {
		gone = append(gone, link)
		defer os.Remove(filepath.Dir(link)) // while there are others it stays
	}
	for _, path := range gone {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// unmount takes down all that is mounted at a path.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EBUSY):
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			if err != nil {
				return fmt.Errorf("unmount %s: %w", path, err)
			}
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT): // nothing is mounted there
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
