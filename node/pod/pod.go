package pod

import (
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/base/group"
	"berth/spec"
)

// pod is one pod in memory.
type pod struct {
	id  string
	op  group.Lock
	rec atomic.Pointer[podRecord]

	// run is the work that makes it, or undoing that takes away what was not
	// made; who asks for the same pod meanwhile waits for it. Set.mu guards both.
	run     *call[string]
	undoing bool

	// unwritten: there was no room for rec where it is kept.
	unwritten atomic.Bool

	mu      sync.Mutex
	members map[string]*member // by id
	names   map[memberName]*member
	working int           // creates and starts that are under way
	idle    chan struct{} // closed when working is 0 again; nil while nobody waits
}

type memberName struct {
	name    string
	attempt uint32
}

// member is one container of a pod in memory.
type member struct {
	id  string
	pod *pod
	op  group.Lock
	rec atomic.Pointer[containerRecord]
	// source is the folder of a checkpoint that it is made of, while it is made.
	source string
	// admitted: the room of containers has it, or has had it.
	admitted atomic.Bool
	// unheard: who asked for its start went away before it was done.
	unheard atomic.Bool

	create *call[string] // pod.mu guards it
}

func newPod(rec *podRecord) *pod {
	p := &pod{id: rec.Pod.ID, op: group.NewLock(), members: map[string]*member{}, names: map[memberName]*member{}}
	p.rec.Store(rec)
	return p
}

func newMember(p *pod, rec *containerRecord) *member {
	m := &member{id: rec.Container.ID, pod: p, op: group.NewLock()}
	m.rec.Store(rec)
	return m
}

// seen says whether others may know of it.
func (p *pod) seen() bool { return p.rec.Load().Phase != making }

// creating says whether the work that makes it is under way.
func (m *member) creating() bool {
	m.pod.mu.Lock()
	defer m.pod.mu.Unlock()
	return !over(m.create)
}

func (m *member) seen() bool {
	phase := m.rec.Load().Phase
	return phase != making
}

func (p *pod) get() spec.Pod { return p.rec.Load().Pod }

func (p *pod) phase() phase { return p.rec.Load().Phase }

func (p *pod) ready() bool { return p.phase() == made }

// change makes a new record out of the last one, in memory and in its file. op
// is held.
func (s *Set) change(p *pod, fn func(*podRecord)) error {
	next := *p.rec.Load()
	fn(&next)
	next.Pod.State = spec.PodNotReady
	if next.Phase == made {
		next.Pod.State = spec.PodReady
	}
	err := s.db.putPod(&next)
	if err != nil && !s.goesUnwritten(p.id, next.Phase, err) {
		return err
	}
	p.unwritten.Store(err != nil)
	p.rec.Store(&next)
	return nil
}

// goesUnwritten says whether what goes may go though there is no room to put
// that on record: nothing else would make room. A node that comes after this one
// finds of it what is there, and is asked again.
func (s *Set) goesUnwritten(id string, phase phase, err error) bool {
	if !errors.Is(err, unix.ENOSPC) || phase == making || phase == made {
		return false
	}
	s.Log.Warn("there is no room to put on record that it goes", "id", id, "phase", phase)
	s.spoil()
	return true
}

// changeMember is change for a container. Its op is held.
func (s *Set) changeMember(m *member, fn func(*containerRecord)) error {
	next := *m.rec.Load()
	fn(&next)
	if err := s.db.putContainer(&next); err != nil && !s.goesUnwritten(m.id, next.Phase, err) {
		return err
	}
	m.rec.Store(&next)
	return nil
}

// enter begins work on containers in the pod that a stop of the pod has to wait
// for. errs.Conflict: the pod is not ready.
func (p *pod) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ready() {
		return errs.New(errs.Conflict, "pod %s is not ready", p.id)
	}
	p.working++
	return nil
}

func (p *pod) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working--
	if p.working == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// quiet is closed when nobody works on containers in the pod.
func (p *pod) quiet() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.working == 0 {
		none := make(chan struct{})
		close(none)
		return none
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	return p.idle
}

// all gives the pod's containers, those in the making too.
func (p *pod) all() []*member {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*member, 0, len(p.members))
	for _, m := range p.members {
		all = append(all, m)
	}
	return all
}

// same says whether two configurations ask for the same.
func same(a, b any) bool {
	one, err := json.Marshal(a)
	two, err2 := json.Marshal(b)
	return err == nil && err2 == nil && string(one) == string(two)
}
