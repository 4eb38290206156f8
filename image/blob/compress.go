package blob

import (
	"io"

	"github.com/klauspost/compress/gzip"
)

// level of Compress. Higher ones cost twice the time for a tenth of the size.
const level = 5

// Compress returns a writer that gzips into w, always to the same bytes: a
// layer that was committed here can be made again under its digest as long as
// this is so. A test holds it to that. Close does not close w.
func Compress(w io.Writer) io.WriteCloser {
	z, err := gzip.NewWriterLevel(w, level)
	if err != nil {
		panic(err) // the level is a constant
	}
	return z
}
