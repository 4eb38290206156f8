package lcfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"berth/base/errs"
	"berth/image/erofs"
	"berth/image/tree"
)

const (
	objectsSuffix   = ".objs"
	temporaryPrefix = "tmp-"
)

// writeImage keeps the tree of a chain as an image and returns its name, the
// image's own digest: the same tree is kept once. Nobody sweeps the image
// before letGo is called; by then a record should name it.
func (s *Store) writeImage(root *tree.Node) (name string, letGo func(), err error) {
	return s.writeTree(root, false)
}

// writeLayer does the same for the tree of a layer, with a list of the objects
// that it names; a chain's are those of its layers.
func (s *Store) writeLayer(root *tree.Node) (name string, letGo func(), err error) {
	return s.writeTree(root, true)
}

func (s *Store) writeTree(root *tree.Node, layer bool) (name string, letGo func(), err error) {
	if err := whole(root); err != nil {
		return "", nil, fmt.Errorf("write image: %w", err)
	}
	dir := filepath.Join(s.dir, "meta")
	f, err := os.CreateTemp(dir, temporaryPrefix)
	if err != nil {
		return "", nil, fmt.Errorf("write image: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	hash := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, hash), 256<<10)
	if _, err := erofs.Write(w, root); err != nil {
		return "", nil, fmt.Errorf("write image: %w", err)
	}
	if err := w.Flush(); err != nil {
		return "", nil, fmt.Errorf("write image: %w", err)
	}
	name = hex.EncodeToString(hash.Sum(nil))
	letGo = s.hold(name)
	if err := s.placeImage(f.Name(), name, root, layer); err != nil {
		letGo()
		return "", nil, fmt.Errorf("write image: %w", err)
	}
	return name, letGo, nil
}

// whole fails if a file's body is neither in the tree nor an object: it would
// read as zeros.
func whole(n *tree.Node) error {
	for _, e := range n.Entries() {
		switch c := e.Node; {
		case c.IsRegular() && c.Size > 0 && len(c.Body) == 0 && c.Object == (tree.Digest{}):
			return errs.New(errs.Internal, "the body of a file %q is nowhere", e.Name)
		case c.IsDir():
			if err := whole(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeImage gives an image its name, unless it is there. One that a process
// before us left unnamed may be torn: it is replaced.
func (s *Store) placeImage(file, name string, root *tree.Node, layer bool) error {
	s.placing.Lock()
	defer s.placing.Unlock()
	s.mu.RLock()
	_, known := s.sound[name]
	s.mu.RUnlock()
	if layer && known {
		_, err := os.Stat(s.objectsPath(name))
		layer = os.IsNotExist(err) // it was only a chain's until now
	}
	if layer {
		if err := s.writeObjects(name, tree.Objects(root)); err != nil {
			return err
		}
	}
	if known {
		return nil
	}
	if err := os.Rename(file, s.images.path(name)); err != nil {
		return err
	}
	if err := os.Remove(s.images.restPath(name)); err != nil && !os.IsNotExist(err) { // may be damaged
		return err
	}
	if err := s.remount(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sound[name] = struct{}{}
	s.nudge(s.restless)
	return nil
}

// hold keeps an image from the sweep until the returned function is called.
func (s *Store) hold(name string) (letGo func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making[name]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.goneLocked(name, true) // looked at by the next sweep, if no record took it
		add(s.making, name, -1)
		s.nudge(s.restless)
	}
}

func (s *Store) objectsPath(name string) string {
	return filepath.Join(s.dir, "meta", name+objectsSuffix)
}

// writeObjects keeps the digests that an image names, in order.
func (s *Store) writeObjects(name string, digests []tree.Digest) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "meta"), temporaryPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	w := bufio.NewWriter(f)
	for _, d := range digests {
		if _, err := w.Write(d[:]); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.objectsPath(name))
}

// eachObject calls fn for the digests that an image names, in order, until fn
// returns false.
func (s *Store) eachObject(ctx context.Context, name string, fn func(tree.Digest) bool) error {
	f, err := os.Open(s.objectsPath(name))
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	var d, last tree.Digest
	for n := 0; ; n++ {
		last = d
		switch _, err := io.ReadFull(r, d[:]); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read %s: %w", f.Name(), err)
		case d.Compare(last) <= 0: // nor is a body's digest zero
			return fmt.Errorf("read %s: %w", f.Name(), errTorn)
		}
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if !fn(d) {
			return nil
		}
	}
}

// readImage reads the tree of an image.
func (s *Store) readImage(name string) (*tree.Node, error) {
	content, size, done, err := s.images.at(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }()
	image, err := erofs.Open(content, size)
	if err != nil {
		return nil, errs.New(errs.Internal, "image %.16s is damaged: %w", name, err)
	}
	root, err := image.Tree()
	if err != nil {
		return nil, errs.New(errs.Internal, "image %.16s is damaged: %w", name, err)
	}
	return root, nil
}
