package network

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"

	"berth/base/errs"
	"berth/base/group"
)

// undoTimeout is how long a failed ADD waits for the DEL that takes it back.
const undoTimeout = 10 * time.Second

// leaving are the DELs that are at work, by container and link. Those who asked
// may be gone: a DEL that is killed half way leaves what the next one does not
// find any more, such as rules that bear the address of a link that it had
// removed. So it goes on for as long again as was waited for it, and the next
// DEL waits for it. Like those of an earlier node it outlives this one.
type leaving struct {
	group.Background
	mu  sync.Mutex
	del map[string]*del
}

type del struct {
	ended chan struct{}
	err   error
}

// delList runs DEL of each plugin, after one that may be at work.
func (c *cniPlugins) delList(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	c.earlier.wait(ctx, rt.ContainerID, c.timeout)
	for {
		d, begun := c.del(ctx, list, rt)
		if begun {
			within, cancel := context.WithTimeout(ctx, c.timeout)
			defer cancel()
			return d.wait(within, list.Name)
		}
		if err := d.wait(ctx, list.Name); err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// undoAdd takes back what there is of an ADD that failed.
func (c *cniPlugins) undoAdd(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(undoTimeout, c.timeout))
	defer cancel()
	return c.delList(ctx, list, rt)
}

// del begins a DEL, or finds the one that is at work.
func (c *cniPlugins) del(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (d *del, begun bool) {
	key := rt.ContainerID + "/" + rt.IfName
	l := &c.leaving
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.del[key]; d != nil {
		return d, false
	}
	d = &del{ended: make(chan struct{})}
	if l.del == nil {
		l.del = map[string]*del{}
	}
	l.del[key] = d
	l.Go(func() {
		d.err = c.runDel(context.WithoutCancel(ctx), list, rt)
		l.mu.Lock()
		delete(l.del, key)
		l.mu.Unlock()
		close(d.ended)
	})
	return d, true
}

func (c *cniPlugins) runDel(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(ctx, 2*c.timeout)
	defer cancel()
	if !isNamespace(rt.NetNS) {
		rt.NetNS = "" // gone, as after a reboot; addresses must be freed still
	}
	if err := c.lib.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

func (d *del) wait(ctx context.Context, network string) error {
	select {
	case <-d.ended:
		return d.err
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errs.New(errs.Timeout, "CNI network %s did not end its DEL in time: it goes on", network)
	}
	return ctx.Err()
}
