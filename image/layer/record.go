package layer

import (
	"encoding/binary"
	"slices"

	"github.com/klauspost/compress/zstd"

	"berth/image/tree"
)

// A recipe is a zstd stream, of one or more frames, of records: a length, that
// many bytes of the tar, then the size and the digest of the body that comes
// next in it. Lengths and sizes are unsigned varints. A record of size 0 has
// no digest; one of length 0 and size 0 is the last. It begins with magic.
const magic = "berth recipe 1\n"

// longest is the most raw bytes that one record has.
const longest = 1 << 20

var lastRecord = []byte{0, 0}

// frame is the most that one frame holds: what the encoder takes as one block,
// without a history that it would have to clear.
const frame = 128 << 10

func newEncoder(workers int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers), zstd.WithWindowSize(frame), zstd.WithLowerEncoderMem(true))
}

// appendRecord adds a record to recipe, unless it would say nothing. Raw is
// at most the longest.
func appendRecord(recipe, raw []byte, d tree.Digest, size int64) []byte {
	if len(raw) == 0 && size == 0 {
		return recipe
	}
	recipe = binary.AppendUvarint(recipe, uint64(len(raw)))
	recipe = append(recipe, raw...)
	recipe = binary.AppendUvarint(recipe, uint64(size))
	if size > 0 {
		recipe = append(recipe, d[:]...)
	}
	return recipe
}

// encode makes the part of the recipe that b stands for: frames of its own.
// All bodies in b are stored, and so their digests are known.
func (s *stream) encode(b *block) {
	scratch := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(scratch)
	plain := (*scratch)[:0]
	if b.first {
		plain = append(plain, magic...)
	}
	tar, from := *b.room, 0
	for i := range b.parts {
		switch p := &b.parts[i]; {
		case p.big == nil:
			plain = appendRecord(plain, tar[from:p.at], p.node.Object, int64(p.end-p.at))
			from = p.end
		case p.first:
			plain = appendRecord(plain, tar[from:p.at], p.node.Object, p.big.size)
			from = p.end
		default: // recorded where it began; nothing is before it in b
			from = p.end
		}
	}
	plain = appendRecord(plain, tar[from:b.used], tree.Digest{}, 0)
	if b.last {
		plain = append(plain, lastRecord...)
	}
	*scratch = plain
	b.recipe = make([]byte, 0, len(plain)/3)
	for piece := range slices.Chunk(plain, frame) {
		b.recipe = s.encoder.EncodeAll(piece, b.recipe)
	}
}

// writeRecipe writes what is made of the recipe, in its order; with wait set,
// all of it.
func (s *stream) writeRecipe(wait bool) error {
	for len(s.queue) > 0 {
		b := s.queue[0]
		if !wait {
			select {
			case <-b.done:
			default:
				return nil
			}
		}
		<-b.done
		if s.failed.Load() {
			return s.firstError()
		}
		if _, err := s.recipe.Write(b.recipe); err != nil {
			return err
		}
		s.queue = s.queue[1:]
	}
	return nil
}
