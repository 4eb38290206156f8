package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/base/errs"
)

// note says where the bytes in a holding pipe belong. It lies in a file
// mapped into memory, so it outlives a keeper that is killed at any
// instruction, and costs no system call.
type note struct {
	inode  atomic.Uint64 // of the log
	offset atomic.Uint64 // at which the records begin
	taken  atomic.Uint64 // how many bytes were put into the pipe; 0: not known yet, and none is consumed
	stream atomic.Uint64
}

const maxNotes = 1 << 16 // 2 MiB, of which only touched pages exist

// notes is the file of all notes of one keeper.
type notes struct {
	file []note
	raw  []byte
	mu   sync.Mutex
	used []uint64 // one bit each
}

func openNotes(path string) (*notes, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open notes: %w", err)
	}
	size := maxNotes * int(unsafe.Sizeof(note{}))
	err = f.Truncate(int64(size))
	var raw []byte
	if err == nil {
		raw, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("map notes: %w", err)
	}
	n := &notes{raw: raw, used: make([]uint64, maxNotes/64)}
	n.file = unsafe.Slice((*note)(unsafe.Pointer(&raw[0])), maxNotes)
	return n, nil
}

// take returns a free slot.
func (n *notes) take() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	word := slices.IndexFunc(n.used, func(w uint64) bool { return w != ^uint64(0) })
	if word < 0 {
		return 0, errs.New(errs.Exhausted, "the keeper holds %d processes", maxNotes)
	}
	bit := 0
	for n.used[word]&(1<<bit) != 0 {
		bit++
	}
	n.used[word] |= 1 << bit
	return word*64 + bit, nil
}

// claim takes the slot that a process had under an earlier keeper.
func (n *notes) claim(slot int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slot < 0 || slot >= maxNotes || n.used[slot/64]&(1<<(slot%64)) != 0 {
		return errs.New(errs.Conflict, "slot %d is not free", slot)
	}
	n.used[slot/64] |= 1 << (slot % 64)
	return nil
}

func (n *notes) release(slot int) {
	n.mu.Lock()
	n.used[slot/64] &^= 1 << (slot % 64)
	n.mu.Unlock()
}
