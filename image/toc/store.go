package toc

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
)

// Config says what a Store keeps.
type Config struct {
	Dir string
	// Age is how long a table is kept after it was last used; 30 days when 0.
	Age time.Duration
	// Limit is how many bytes all of them may take; 1 GiB when 0.
	Limit int64
}

// Store keeps tables by the digest of their blob, also when no image wants
// the blob any more: the next pull of it is the quicker. One file each,
// <algorithm>-<hex>; its time of change is when it was last used. Nothing in it
// is needed: what is damaged or lost is noted anew.
type Store struct{ Config }

// Open makes the folder.
func Open(c Config) (*Store, error) {
	c.Age = cmp.Or(c.Age, 30*24*time.Hour)
	c.Limit = cmp.Or(c.Limit, 1<<30)
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open tables of contents: %w", err)
	}
	return &Store{c}, nil
}

func (s *Store) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", errs.New(errs.Invalid, "digest %.80q: %w", d, err)
	}
	return filepath.Join(s.Dir, d.Algorithm().String()+"-"+d.Encoded()), nil
}

// Has says whether there is a table of blob d.
func (s *Store) Has(d digest.Digest) bool {
	path, err := s.path(d)
	if err != nil {
		return false
	}
	_, err = os.Lstat(path)
	return err == nil
}

// Get opens the table of blob d, which counts as a use. NotFound: there is
// none; one that is damaged is gone then, too.
func (s *Store) Get(d digest.Digest) (*File, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "no table of contents of blob %s", d)
	}
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	f, err := Read(file)
	if err == nil && f.Table.Blob != d {
		err = errs.New(errs.Invalid, "it is of blob %s", f.Table.Blob)
	}
	if err != nil {
		if err = errors.Join(err, file.Close()); errs.KindOf(err) == errs.Invalid {
			return nil, errs.New(errs.NotFound, "the table of contents of blob %s was damaged: %w", d, errors.Join(err, os.Remove(path)))
		}
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // a full disk may refuse; then it merely looks older
	return f, nil
}

// Put keeps a table. It need not survive a loss of power, for what is damaged
// is found out.
func (s *Store) Put(t *Table, parts ...Part) (err error) {
	path, err := s.path(t.Blob)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.Dir, temporary+"*")
	if err != nil {
		return fmt.Errorf("keep table of contents: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep table of contents: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}()
	w := bufio.NewWriterSize(f, 256<<10)
	if err := errors.Join(t.Write(w, parts...), w.Flush(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

const temporary = "new-"

// Expire deletes tables that were not used for long, and those used longest
// ago until the rest fits. used are those that must stay.
func (s *Store) Expire(ctx context.Context, used func(digest.Digest) bool) error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return fmt.Errorf("expire tables of contents: %w", err)
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var sum int64
	for _, info := range files {
		sum += info.Size()
		age := time.Since(info.ModTime())
		old := age > s.Age || sum > s.Limit
		if strings.HasPrefix(info.Name(), temporary) {
			old = age > time.Hour // left by a crash
		} else if algorithm, hex, ok := strings.Cut(info.Name(), "-"); ok && used(digest.Digest(algorithm+":"+hex)) {
			old = false
		}
		if !old {
			continue
		}
		sum -= info.Size()
		if e := os.Remove(filepath.Join(s.Dir, info.Name())); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return err
}

// Bytes makes a part of what is in memory.
func Bytes(name string, body []byte) Part {
	return Part{name, int64(len(body)), bytes.NewReader(body)}
}
