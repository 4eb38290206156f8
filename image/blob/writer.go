package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// UnknownSize stands where a size is not known beforehand.
const UnknownSize = -1

// Writer takes the bytes of one blob. It counts as stored only once Commit
// has returned. Not for concurrent use.
type Writer struct {
	store     *Store
	file      *os.File
	path      string
	algorithm digest.Algorithm
	want      digest.Digest // "" if not known beforehand
	size      int64         // or UnknownSize
	hash      hash.Hash
	offset    int64
	resumable bool // the partial file may stay for the next attempt
	named     bool // the file stays until Drop
}

// Writer begins a blob. want and size may be "" and UnknownSize; if given,
// Commit holds the content against them. Close it in any case.
func (s *Store) Writer(_ context.Context, want digest.Digest, size int64) (*Writer, error) {
	if want != "" {
		if _, err := s.path(want); err != nil {
			return nil, err
		}
	}
	w := s.newWriter(s.temporary(), want, size)
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write blob: %w", writeError(err))
	}
	w.file = f
	return w, nil
}

// resume begins a blob, or goes on with what an earlier attempt left. Only
// the flight of want may call it.
func (s *Store) resume(ctx context.Context, want digest.Digest, size int64) (*Writer, error) {
	w := s.newWriter(filepath.Join(s.dir, partialDir, partialName(want)), want, size)
	w.resumable = true
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write blob %s: %w", want, writeError(err))
	}
	w.file = f
	if err := w.takeUp(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("resume blob %s: %w", want, err), f.Close())
	}
	return w, nil
}

func (s *Store) newWriter(path string, want digest.Digest, size int64) *Writer {
	alg := digest.Canonical
	if want != "" {
		alg = want.Algorithm()
	}
	return &Writer{store: s, path: path, algorithm: alg, want: want, size: size, hash: alg.Hash()}
}

// takeUp hashes what is there already, so that writing goes on behind it.
func (w *Writer) takeUp(ctx context.Context) error {
	st, err := w.file.Stat()
	if err != nil {
		return err
	}
	if w.size >= 0 && st.Size() > w.size {
		return w.file.Truncate(0) // never the start of this blob
	}
	buf := w.store.buffers.Get().(*[]byte)
	defer w.store.buffers.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := w.file.ReadAt(*buf, w.offset)
		w.hash.Write((*buf)[:n])
		w.offset += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// Offset is how many bytes are written, those of earlier attempts included.
func (w *Writer) Offset() int64 { return w.offset }

func (w *Writer) Write(p []byte) (int, error) {
	if w.size >= 0 && w.offset+int64(len(p)) > w.size {
		w.resumable = false
		return 0, errs.New(errs.Invalid, "blob %s is longer than the %d bytes it should have", w.want, w.size)
	}
	n, err := w.file.WriteAt(p, w.offset)
	w.hash.Write(p[:n])
	w.offset += int64(n)
	if err != nil {
		w.resumable = false                               // give the space back
		err = errors.Join(err, w.file.Truncate(w.offset)) // some more may have been written than n says
		return n, fmt.Errorf("write blob: %w", writeError(err))
	}
	return n, nil
}

// ReadFrom copies r in pooled buffers, so that io.Copy allocates none.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	buf := w.store.buffers.Get().(*[]byte)
	defer w.store.buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf)
}

// ReadAt reads back what has been written.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) { return w.file.ReadAt(p, off) }

// Verify holds what was written against what was wanted, and returns its
// digest. Commit does so by itself.
func (w *Writer) Verify() (digest.Digest, error) {
	got := digest.NewDigest(w.algorithm, w.hash)
	switch {
	case w.size >= 0 && w.offset < w.size:
		return "", errs.New(errs.Unavailable, "blob %s ended after %d of %d bytes", w.want, w.offset, w.size)
	case w.want != "" && got != w.want:
		w.resumable = false
		return "", errs.New(errs.Invalid, "content does not match its digest: wanted %s, got %s; nothing of it was kept", w.want, got)
	}
	return got, nil
}

// Commit verifies the content and puts it in place; when it returns, the
// blob survives a power cut. errs.Invalid if size or digest are wrong. That
// the blob is here already is no error.
func (w *Writer) Commit(context.Context) (Info, error) {
	d, err := w.Verify()
	if err != nil {
		return Info{}, err
	}
	return w.publish(d)
}

func (w *Writer) publish(d digest.Digest) (Info, error) {
	path, err := w.store.path(d)
	if err != nil {
		return Info{}, err
	}
	if err := w.file.Sync(); err != nil {
		w.resumable = false // what the disk lost cannot be trusted
		return Info{}, fmt.Errorf("sync blob %s: %w", d, writeError(err))
	}
	if err := os.Rename(w.path, path); err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", d, err)
	}
	w.path = ""
	if err := syncDir(filepath.Dir(path)); err != nil {
		return Info{}, fmt.Errorf("store blob %s: %w", d, err)
	}
	return w.store.Info(d)
}

// Close lets go. Without Commit nothing is left, except for a download that
// can be resumed.
func (w *Writer) Close() error {
	var err error
	if w.file != nil {
		err = w.file.Close()
	}
	if w.path != "" && !w.named && (!w.resumable || w.offset == 0) {
		if e := os.Remove(w.path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	w.path = ""
	return err
}

// Put stores a small blob and returns its digest.
func (s *Store) Put(ctx context.Context, content []byte) (digest.Digest, error) {
	d := digest.FromBytes(content)
	if s.Has(d) {
		return d, nil
	}
	_, err := s.Ingest(ctx, bytes.NewReader(content), d, int64(len(content)))
	return d, err
}

// Ingest stores all of r. want and size may be "" and UnknownSize.
func (s *Store) Ingest(ctx context.Context, r io.Reader, want digest.Digest, size int64) (_ Info, err error) {
	w, err := s.Writer(ctx, want, size)
	if err != nil {
		return Info{}, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.ReadFrom(r); err != nil {
		return Info{}, err
	}
	return w.Commit(ctx)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
