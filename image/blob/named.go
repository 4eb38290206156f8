package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// nameForm is that of the names of content in the making.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)

// Named begins content that its writer comes back to, or goes on with what is
// there. It stays under its name until Commit or Drop, whatever goes wrong;
// what it should be is told at the end: see Digest. One Writer of a name at a
// time.
func (s *Store) Named(ctx context.Context, name string, algorithm digest.Algorithm) (*Writer, error) {
	path, err := s.namedPath(name)
	if err != nil {
		return nil, err
	}
	if !algorithm.Available() {
		return nil, errs.New(errs.Unsupported, "digest algorithm %.20q", algorithm)
	}
	w := &Writer{store: s, path: path, algorithm: algorithm, size: UnknownSize, hash: algorithm.Hash(), named: true}
	if w.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("write blob: %w", writeError(err))
	}
	if err := w.takeUp(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("resume blob: %w", err), w.file.Close())
	}
	return w, nil
}

// NamedInfo is what there is of named content. NotFound: nothing.
func (s *Store) NamedInfo(name string) (fs.FileInfo, error) {
	path, err := s.namedPath(name)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "no content is called %s", name)
	}
	return st, err
}

// EachNamed lists the names of content in the making.
func (s *Store) EachNamed() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, namedDir))
	if err != nil {
		return nil, fmt.Errorf("list named content: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// DropNamed removes named content that nobody writes. None is no error.
func (s *Store) DropNamed(name string) error {
	path, err := s.namedPath(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop named content: %w", err)
	}
	return nil
}

func (s *Store) namedPath(name string) (string, error) {
	if !nameForm.MatchString(name) {
		return "", errs.New(errs.Invalid, "name %.80q", name)
	}
	return filepath.Join(s.dir, namedDir, name), nil
}

// Digest is that of what has been written.
func (w *Writer) Digest() digest.Digest { return digest.NewDigest(w.algorithm, w.hash) }

// Algorithm is that of Digest.
func (w *Writer) Algorithm() digest.Algorithm { return w.algorithm }

// Truncate forgets what has been written.
func (w *Writer) Truncate() error {
	if err := w.file.Truncate(0); err != nil {
		return fmt.Errorf("write blob: %w", writeError(err))
	}
	w.offset = 0
	w.hash.Reset()
	return nil
}

// Rehash takes the digest of what has been written by another algorithm.
func (w *Writer) Rehash(ctx context.Context, algorithm digest.Algorithm) error {
	if !algorithm.Available() {
		return errs.New(errs.Unsupported, "digest algorithm %.20q", algorithm)
	}
	w.algorithm, w.hash, w.offset = algorithm, algorithm.Hash(), 0
	return w.takeUp(ctx)
}

// Sync returns when what has been written would survive a loss of power.
// Commit is quicker after it.
func (w *Writer) Sync() error {
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("sync blob: %w", writeError(err))
	}
	return nil
}

// Copy appends the whole blob d.
func (w *Writer) Copy(ctx context.Context, d digest.Digest) (err error) {
	r, err := w.store.Reader(ctx, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = io.Copy(w, r)
	return err
}
