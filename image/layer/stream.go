package layer

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"berth/image/object"
	"berth/image/tree"
)

// ahead is how many blocks wait for a worker.
const ahead = 2

// stream is a tar on its way through blocks. The parser fills them from the
// source and notes which bytes are bodies; full ones go to workers, who store
// these out of the block itself; what is left of a block goes into the recipe,
// block after block.
type stream struct {
	src    *source
	sink   sink
	cur    *block
	pos    int // cur.data()[pos:end] is read, but not taken
	end    int
	offset int64 // of pos in the tar

	work    chan *block
	room    chan struct{} // one for each block there may be
	workers int           // that may still be started
	running sync.WaitGroup
	failed  atomic.Bool
	mu      sync.Mutex
	err     error // the first of a worker

	recipe  io.Writer // nil: none
	encoder *zstd.Encoder
	scratch sync.Pool // of *[]byte
	queue   []*block  // whose part of the recipe is not written
}

// block is a piece of the tar.
type block struct {
	room   *[]byte
	used   int    // bytes of the tar that are this block's
	parts  []part // in their order
	refs   atomic.Int32
	first  bool // of the tar
	last   bool
	recipe []byte
	done   chan struct{} // closed when recipe is made
}

// part is a body, or a piece of one, in a block.
type part struct {
	at, end int
	node    *tree.Node
	big     *big // whose piece it is, unless nil
	first   bool // of the pieces
}

func newStream(src *source, sink sink, workers int, recipe io.Writer) (*stream, error) {
	s := &stream{
		src: src, sink: sink, recipe: recipe, workers: workers,
		work: make(chan *block, ahead), room: make(chan struct{}, workers+ahead+2),
	}
	if recipe != nil {
		var err error
		if s.encoder, err = newEncoder(workers); err != nil {
			return nil, err
		}
		s.scratch.New = func() any { return new([]byte) }
	}
	s.cur = s.newBlock()
	s.cur.first = true
	return s, nil
}

func (s *stream) data() []byte { return *s.cur.room }

// need reads until n bytes, at most a block, are there to be taken. At the end of the
// tar it is io.EOF, or io.ErrUnexpectedEOF where some are there.
func (s *stream) need(n int) error {
	if s.end-s.pos >= n {
		return nil
	}
	if s.pos+n > object.Block {
		if err := s.turn(); err != nil {
			return err
		}
	}
	for idle := 0; s.end-s.pos < n; idle++ {
		got, err := s.src.Read(s.data()[s.end:])
		if s.end += got; got > 0 {
			idle = 0
		}
		switch {
		case s.end-s.pos >= n:
		case err == io.EOF && s.end > s.pos: //nolint:errorlint // readers return io.EOF itself
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case idle > 100:
			return io.ErrNoProgress
		}
	}
	return nil
}

// turn goes on to a new block, taking along what is not taken.
func (s *stream) turn() error {
	if s.failed.Load() {
		return s.firstError()
	}
	next := s.newBlock()
	rest := copy(*next.room, s.data()[s.pos:s.end])
	s.cur.used = s.pos
	s.dispatch(s.cur)
	s.cur, s.pos, s.end = next, 0, rest
	return s.writeRecipe(false)
}

func (s *stream) newBlock() *block {
	s.room <- struct{}{}
	b := &block{room: s.sink.block(), done: make(chan struct{})}
	b.refs.Store(1)
	if s.recipe != nil {
		s.queue = append(s.queue, b)
	}
	return b
}

// take hands out the next n bytes, which need has asked for. They are valid
// until the next need.
func (s *stream) take(n int) []byte {
	p := s.data()[s.pos : s.pos+n : s.pos+n]
	s.pos += n
	s.offset += int64(n)
	return p
}

// skip passes over n bytes, which the recipe keeps.
func (s *stream) skip(n int64) error {
	for n > 0 {
		if err := s.need(1); err != nil {
			return short(err)
		}
		n -= int64(len(s.take(int(min(n, int64(s.end-s.pos))))))
	}
	return nil
}

// short is the error where an end is too early.
func short(err error) error {
	if err == io.EOF { //nolint:errorlint // need's own
		return io.ErrUnexpectedEOF
	}
	return err
}

// body has the next size bytes stored as the body of n.
func (s *stream) body(n *tree.Node, size int64) error {
	if size > object.Block {
		return s.bigBody(n, size)
	}
	if err := s.need(int(size)); err != nil {
		return short(err)
	}
	at := s.pos
	s.take(int(size))
	s.cur.parts = append(s.cur.parts, part{at: at, end: s.pos, node: n})
	return nil
}

// dispatch gives a block to a worker, and begins one more while there may be.
func (s *stream) dispatch(b *block) {
	if s.workers > 0 {
		s.workers--
		s.running.Go(func() {
			for b := range s.work {
				s.store(b)
			}
		})
	}
	s.work <- b
}

// store stores the bodies that are whole in b.
func (s *stream) store(b *block) {
	for i := range b.parts {
		p := &b.parts[i]
		if p.big != nil || s.failed.Load() {
			continue
		}
		var err error
		if p.node.Object, err = s.sink.put((*b.room)[p.at:p.end]); err != nil {
			s.fail(err)
		}
	}
	s.release(b)
}

// release drops one reference to b. The last one makes its part of the recipe.
func (s *stream) release(b *block) {
	if b.refs.Add(-1) > 0 {
		return
	}
	if s.recipe != nil && !s.failed.Load() {
		s.encode(b)
	}
	s.sink.giveBack(b.room)
	b.room = nil
	close(b.done)
	<-s.room
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.failed.Store(true)
}

func (s *stream) firstError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// finish waits for the workers. With drop set, the layer is given up.
func (s *stream) finish(drop bool) error {
	if drop {
		s.fail(errDropped)
	}
	s.cur.used, s.cur.last = s.pos, true
	s.store(s.cur)
	close(s.work)
	s.running.Wait()
	if s.failed.Load() {
		return s.firstError()
	}
	return s.writeRecipe(true)
}

var errDropped = errors.New("the layer is given up")

// big is a body that does not fit into a block. It has a goroutine of its
// own, which stores it piece by piece.
type big struct {
	node   *tree.Node
	size   int64
	begin  *block
	pieces chan piece
}

type piece struct {
	block *block
	body  []byte
}

func (s *stream) bigBody(n *tree.Node, size int64) error {
	if err := s.need(1); err != nil {
		return short(err)
	}
	b := &big{node: n, size: size, begin: s.cur, pieces: make(chan piece, ahead)}
	s.cur.refs.Add(1)
	s.running.Go(func() { s.storeBig(b) })
	defer close(b.pieces)
	for left := size; left > 0; {
		if s.pos == object.Block {
			if err := s.turn(); err != nil {
				return err
			}
		}
		want := int(min(left, int64(object.Block-s.pos)))
		if err := s.need(want); err != nil {
			return short(err)
		}
		first, at := left == size, s.pos
		body := s.take(want)
		s.cur.parts = append(s.cur.parts, part{at: at, end: s.pos, node: n, big: b, first: first})
		s.cur.refs.Add(1)
		b.pieces <- piece{s.cur, body}
		left -= int64(want)
	}
	return nil
}

func (s *stream) storeBig(b *big) {
	defer s.release(b.begin)
	w, err := s.sink.create()
	got := int64(0)
	for p := range b.pieces {
		if err == nil && !s.failed.Load() {
			var n int
			n, err = w.Write(p.body)
			got += int64(n)
		}
		s.release(p.block)
	}
	if w != nil {
		defer w.Abort()
	}
	if err == nil && got == b.size { // else the stream ended early
		b.node.Object, err = w.Commit()
	}
	if err != nil {
		s.fail(err)
	}
}
