package cri

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"berth/test/machine"
)

// victim is a call on a pod that is caught at a point.
type victim struct {
	app
	cue    string // that it is caught by; "" for one that hangs by itself
	before func(n *node, a *app) error
	call   func(n *node, a *app) error
}

func victims() []*victim {
	none := func(*node, *app) error { return nil }
	created := func(n *node, a *app) error {
		if err := n.runp(a); err != nil {
			return err
		}
		return n.create(a)
	}
	runp, up, start, stop, stopp, rmp := (*node).runp, (*node).up, (*node).launch, (*node).stop, (*node).stopp, (*node).rmp
	list := []*victim{
		{app{name: "runp-add", handler: "cue", port: 12011}, "ADD hangs", none, runp},
		{app{name: "runp-added", handler: "cue", port: 12012}, "ADD hangs late", none, runp},
		{app{name: "runp-pause", handler: "cue", shared: true}, "run hangs", none, runp},
		{app{name: "runp-paused", handler: "cue", shared: true}, "run hangs late", none, runp},
		{app{name: "start-run", handler: "cue"}, "run hangs", created, start},
		{app{name: "start-ran", handler: "cue"}, "run hangs late", created, start},
		{app{name: "stop-asked", handler: "cue"}, "", up, stop},
		{app{name: "stop-kill", handler: "alien"}, "kill hangs", up, stopp},
		{app{name: "stop-killed", handler: "alien"}, "kill hangs late", up, stopp},
		{app{name: "stop-del", handler: "cue", shared: true, port: 12013}, "DEL hangs", up, stopp},
		{app{name: "rm-del", handler: "cue", port: 12014}, "DEL hangs", up, rmp},
		{app{name: "rm-deled", handler: "cue", port: 12015}, "DEL hangs late", up, rmp},
		{app{name: "rm-delete", handler: "alien"}, "delete hangs", up, rmp},
		{app{name: "rm-deleted", handler: "alien"}, "delete hangs late", up, rmp},
	}
	return list
}

// Whoever dies in the middle of calls, a pod that is there beside them lives on,
// each call can be made again, and in the end nothing is left. Containers go
// only with both.
func TestNodeAndKeeperDieInTheMiddle(t *testing.T) {
	n := cued(t, "")
	witness := &app{name: "witness", handler: "cue", port: 12010}
	machine.Must(t, n.up(witness))
	n.complete(t, witness) // its program runs, and not the runtime any more
	before, open := n.inventory(t), descriptors(t, n.Helper("keeper"))
	for _, who := range []string{"node", "keeper"} {
		t.Run(who, func(t *testing.T) {
			n.dieInTheMiddle(t, who)
			n.asked(t, witness)
			if err := n.works(witness); err != nil {
				t.Errorf("the witness suffers: %v", err)
			}
			n.complete(t, witness)
			n.same(t, before)
			machine.Until(t, "the keeper has closed what it held", func() error {
				if now := descriptors(t, n.Helper("keeper")); len(now) > len(open)+4 {
					return fmt.Errorf("it has %d descriptors, had %d: %q", len(now), len(open), now)
				}
				return nil
			})
		})
	}
	t.Run("both", func(t *testing.T) {
		n.dieInTheMiddle(t, "both")
		n.asked(t, witness)
		if is, err := n.fares(witness); err != nil || is != "SANDBOX_READY CONTAINER_EXITED ContainerStatusUnknown" {
			t.Errorf("the witness is %s, %v", is, err)
		}
		n.must(t, "crictl", "rm", witness.id)
		machine.Must(t, n.create(witness))
		machine.Must(t, n.launch(witness))
		machine.Must(t, n.works(witness))
		machine.Must(t, n.rmp(witness))
	})
}

func (n *node) dieInTheMiddle(t *testing.T, who string) {
	t.Helper()
	list := victims()
	machine.Must(t, all(list, func(v *victim) error { return v.before(n, &v.app) }))
	for _, v := range list {
		if v.cue != "" {
			n.cue(t, v.name, v.cue)
		}
	}
	answers := make(chan error, 1)
	go func() {
		answers <- all(list, func(v *victim) error {
			if err := v.call(n, &v.app); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			return nil
		})
	}()
	for _, v := range list {
		machine.Until(t, v.name+" comes to its point", func() error {
			if v.cue != "" {
				return n.held(v.name)
			}
			if log, _ := os.ReadFile(filepath.Join(n.Dir, "logs", v.name, "app.log")); !strings.Contains(string(log), " asked\n") {
				return errors.New("it was not asked to end")
			}
			return nil
		})
	}
	if who != "node" {
		n.KillKeeper(t)
	}
	if who != "keeper" {
		n.Kill()
		n.Start(t)
	}
	n.release(t)
	t.Logf("answers: %v", <-answers)
	n.again(t, list)
}

// asked has the witness asked for again, which is there.
func (n *node) asked(t *testing.T, witness *app) {
	t.Helper()
	same := *witness
	if err := n.runp(&same); err != nil || same.pod != witness.pod {
		t.Errorf("the witness asked for again is %s, was %s: %v", same.pod, witness.pod, err)
	}
}

// complete looks whether the log has every number, and goes on.
func (n *node) complete(t *testing.T, a *app) {
	t.Helper()
	file := filepath.Join(n.Dir, "logs", a.name, "app.log")
	count := func() (lines int) {
		log, err := os.ReadFile(file)
		machine.Must(t, err)
		for line := range strings.Lines(string(log)) {
			fields := strings.Fields(line)
			lines++
			if number, err := strconv.Atoi(fields[len(fields)-1]); err != nil || number != lines {
				t.Fatalf("line %d of the log of %s is %q", lines, a.name, line)
			}
		}
		return lines
	}
	was := count()
	machine.Until(t, "the log goes on", func() error {
		if count() <= was {
			return errors.New("it does not")
		}
		return nil
	})
}

// again makes each call again that was cut off, and the pods anew.
func (n *node) again(t *testing.T, list []*victim) {
	t.Helper()
	machine.Must(t, all(list, func(v *victim) error {
		again := v.app
		switch {
		case strings.HasPrefix(v.name, "runp-"):
			if err := n.runp(&again); err != nil || v.pod != "" && again.pod != v.pod {
				return fmt.Errorf("%s: asked for again it is %s, was %q: %w", v.name, again.pod, v.pod, err)
			}
			return n.rmp(&again)
		case strings.HasPrefix(v.name, "start-"): // it runs, or whoever wants it removes it
			if err := n.launch(&again); err == nil {
				if err := n.works(&again); err != nil {
					return err
				}
			}
		default:
			if err := v.call(n, &again); err != nil {
				return fmt.Errorf("%s again: %w", v.name, err)
			}
		}
		return n.rmp(&v.app)
	}))
	machine.Must(t, all(list, func(v *victim) error {
		if err := n.up(&v.app); err != nil {
			return err
		}
		if err := n.works(&v.app); err != nil {
			return err
		}
		return n.rmp(&v.app)
	}))
}

// descriptors are those that a process has open.
func descriptors(t testing.TB, pid int) (open []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	machine.Must(t, err)
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil {
			open = append(open, to)
		}
	}
	return open
}
