package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// storage measures the layer store. The rows on snapshots alone are driven in
// process, ours and containerd's each in a worker; pulls go through the
// daemons. All lie on one file system and take turns.
type storage struct {
	*bench
	workers []*worker
	base    map[*worker][]string // the chain of the first image
	random  uint64
}

// storageRow is measured when -run matches its name.
type storageRow struct {
	name    string
	measure func(*storage, context.Context) error
	images  []string // that it needs on the shelf
	base    bool     // whether it needs the first image unpacked
}

func storageRows() []storageRow {
	return []storageRow{
		{name: "storage-commit", measure: (*storage).commits},
		{name: "storage-chain", measure: (*storage).chains},
		{name: "storage-containers", measure: (*storage).containers, images: []string{"first"}, base: true},
		{name: "storage-build", measure: (*storage).build, images: []string{"first"}, base: true},
		{name: "storage-walk", measure: (*storage).walk, images: []string{"first"}, base: true},
		{name: "storage-cache", measure: (*storage).cache, images: []string{"first", "near"}, base: true},
	}
}

// measureStorage measures the rows that are wanted.
func (b *bench) measureStorage(ctx context.Context) (err error) {
	if err := b.fillShelf(ctx); err != nil {
		return err
	}
	var wanted []storageRow
	needBase := false
	for _, row := range storageRows() {
		if b.wants(row.name) {
			wanted = append(wanted, row)
			needBase = needBase || row.base
		}
	}
	if len(wanted) > 0 {
		if err := b.measureSnapshots(ctx, wanted, needBase); err != nil {
			return err
		}
	}
	if b.wants(imageRows...) {
		if err := b.measureImages(ctx); err != nil {
			return err
		}
	}
	return b.measureLazy(ctx)
}

// fillShelf makes the images that the wanted rows need.
func (b *bench) fillShelf(ctx context.Context) error {
	needed := map[string]bool{}
	for _, row := range storageRows() {
		for _, tag := range row.images {
			needed[tag] = needed[tag] || b.wants(row.name)
		}
	}
	for _, tag := range pulledTags() {
		needed[tag] = needed[tag] || b.wants("storage-pull", "storage-remove")
	}
	needed["first"] = needed["first"] || b.wants("door-namespaces")
	var images []layered
	for i, l := range variants() {
		if needed[l.tag] || b.wants("storage-disk") && (i == 0 || l.tag[0] == 'v') {
			images = append(images, l)
		}
	}
	return shelf(b.shelf).fill(images, func(tag string) { b.log.InfoContext(ctx, "making the image", "tag", tag) })
}

func (b *bench) measureSnapshots(ctx context.Context, rows []storageRow, needBase bool) (err error) {
	s := &storage{bench: b, base: map[*worker][]string{}}
	logs, err := os.Create(filepath.Join(b.place.dir, "workers.log"))
	if err != nil {
		return err
	}
	defer logs.Close()
	workers, err := newWorkers(b.place, b.settings, logs)
	if err != nil {
		return err
	}
	defer func() {
		for _, w := range s.workers {
			err = errors.Join(err, w.stop())
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, tail(logs.Name()))
		}
	}()
	for _, w := range workers {
		if !b.settings.sides.MatchString(w.column) {
			continue
		}
		if err := w.start(); err != nil {
			return err
		}
		s.workers = append(s.workers, w)
		if needBase {
			b.log.InfoContext(ctx, "unpacking", "side", w.column)
			if s.base[w], err = s.unpack(w, "first"); err != nil {
				return err
			}
		}
	}
	for _, row := range rows {
		b.log.InfoContext(ctx, "measuring", "row", row.name)
		if err := s.restAll(ctx); err != nil {
			return err
		}
		if err := row.measure(s, ctx); err != nil {
			return fmt.Errorf("%s: %w", row.name, err)
		}
	}
	return nil
}

// unpack unpacks an image of the shelf in w.
func (s *storage) unpack(w *worker, tag string) ([]string, error) {
	image, err := shelf(s.shelf).image(tag)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, digest := range image.Layers {
		files = append(files, shelf(s.shelf).blob(digest))
	}
	keys, err := w.unpack(tag, files)
	if err != nil {
		return nil, err
	}
	_, err = w.do(request{Verb: "settle", Key: keys[len(keys)-1]})
	return keys, err
}

// rounds calls do for each worker in turn, n times, and beforehand waits until
// nobody works or writes in the background.
func (s *storage) rounds(ctx context.Context, n int, workers []*worker, do func(w *worker) error) error {
	for round := range n {
		for i := range workers {
			w := workers[(round+i)%len(workers)]
			if err := s.restAll(ctx); err != nil {
				return err
			}
			if err := do(w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *storage) restAll(ctx context.Context) error {
	if err := rest(ctx, s.workers...); err != nil {
		return err
	}
	return s.place.sync()
}

// sides are the workers but for our overlay driver, which only some rows name.
func (s *storage) pair() (pair []*worker) {
	for _, w := range s.workers {
		if w.column != overlayColumn {
			pair = append(pair, w)
		}
	}
	return pair
}

// mounted prepares a snapshot on parent and mounts it, without the syncs of
// overlayfs where volatile.
func (s *storage) mounted(w *worker, parent string, volatile bool) (key, target string, took time.Duration, err error) {
	key = w.name("active")
	target = s.place.run("mnt", w.column, key)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return "", "", 0, err
	}
	took, err = w.all(request{Verb: "prepare", Key: key, Parent: parent, Volatile: volatile}, request{Verb: "mount", Key: key, Path: target, Volatile: volatile})
	return key, target, took, err
}

// write makes n files of size bytes in folders of a hundred.
func (s *storage) write(dir string, n, size int) error {
	body := make([]byte, size)
	for i := range n {
		folder := filepath.Join(dir, fmt.Sprintf("new%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
		}
		s.random++
		copy(body, fmt.Sprintf("%020d", s.random)) // no two the same
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("file%05d", i)), body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// smallLayers writes n layers of a few files each.
func (s *storage) smallLayers(n int) (files []string, err error) {
	for i := range n {
		name := s.place.run(fmt.Sprintf("small%03d.tar.gz", i))
		file, err := os.Create(name)
		if err != nil {
			return nil, err
		}
		squeeze := gzip.NewWriter(file)
		w := tar.NewWriter(squeeze)
		when := time.Unix(1_700_000_000, 0)
		for j := range 5 {
			body := fmt.Appendf(nil, "%2000d", i*5+j)
			h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("etc/conf%d/file%03d", j, i), Mode: 0o644, Size: int64(len(body)), ModTime: when}
			if err := w.WriteHeader(&h); err != nil {
				return nil, err
			}
			if _, err := w.Write(body); err != nil {
				return nil, err
			}
		}
		if err := errors.Join(w.Close(), squeeze.Close(), file.Close()); err != nil {
			return nil, err
		}
		files = append(files, name)
	}
	return files, nil
}

// sync writes the place's disk out, and nobody else's.
func (p *place) sync() error {
	d, err := os.Open(p.disk())
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
