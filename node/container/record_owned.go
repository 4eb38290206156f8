package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"berth/base/kv"
	"berth/spec"
)

// Containers of pods come and go by the dozen, and no answer about one waits
// for a disk. What is written of them goes to a file in the folder that a
// reboot empties, and on to the database with the next commit; then the file
// goes. Whoever kills the node finds the one or the other, and a machine that
// loses its power forgets a tenth of a second, together with the containers.

// ownedFile is what such a file says.
type ownedFile struct {
	Given   *spec.Given `json:"given,omitempty"`
	Removed bool        `json:"removed,omitempty"`
}

func (r *records) ownedFile(key string) string { return filepath.Join(r.owned, key) }

// writeOwned makes what is said of an owned container outlive the node.
func (r *records) writeOwned(c *container) error {
	given := c.given.Load()
	number, err := r.putOwned(c.id, ownedFile{Given: given})
	if err != nil {
		return err
	}
	r.db.LaterThen(func(tx *kv.Tx) error { return r.put(tx, c) }, func() {
		c.mu.Lock()
		c.recorded = given
		c.mu.Unlock()
		r.settle(c.id, number)
	})
	return nil
}

// removeOwned makes it that an owned container is no more, whatever the
// database may say until bury is in it.
func (r *records) removeOwned(key string, bury func(*kv.Tx) error) error {
	number, err := r.putOwned(key, ownedFile{Removed: true})
	if err != nil {
		return err
	}
	r.db.LaterThen(bury, func() { r.settle(key, number) })
	return nil
}

// putOwned writes the file, and gives the write a number.
func (r *records) putOwned(key string, file ownedFile) (uint64, error) {
	data, err := json.Marshal(file)
	if err != nil {
		return 0, fmt.Errorf("record of container %s: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := replaceFile(r.ownedFile(key), data); err != nil {
		return 0, fmt.Errorf("record of container %s: %w", key, err)
	}
	r.written++
	r.writes[key] = r.written
	return r.written, nil
}

// settle takes the file away whose write is durable, if no other came after.
func (r *records) settle(key string, number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes[key] != number {
		return
	}
	delete(r.writes, key)
	if err := os.Remove(r.ownedFile(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("cannot remove a record that is durable elsewhere", "container", key, "error", err)
	}
}

// readOwned lays over the records what was written after the last commit of an
// earlier node.
func (r *records) readOwned(found []record) ([]record, error) {
	files, err := r.ownedFiles()
	if err != nil {
		return nil, err
	}
	whole := found[:0]
	for _, rec := range found {
		key := keyOf(&rec.Container)
		file, written := files[key]
		delete(files, key)
		switch {
		case !written:
			whole = append(whole, rec)
		case file.Given != nil:
			whole = append(whole, overlaid(rec, file.Given))
		default:
			r.goOnRemoving(key)
		}
	}
	for key, file := range files {
		if file.Given == nil {
			r.goOnRemoving(key)
			continue
		}
		whole = append(whole, record{Container: *viewOf(file.Given), Boot: r.boot, given: file.Given, fresh: true})
	}
	return whole, nil
}

// ownedFiles reads the files that are there.
func (r *records) ownedFiles() (map[string]ownedFile, error) {
	entries, err := os.ReadDir(r.owned)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files := make(map[string]ownedFile, len(entries))
	for _, e := range entries {
		key := e.Name()
		if strings.HasSuffix(key, partSuffix) { // a write that was cut off
			_ = os.Remove(r.ownedFile(key))
			continue
		}
		data, err := os.ReadFile(r.ownedFile(key))
		if err != nil {
			return nil, err
		}
		var file ownedFile
		if err := json.Unmarshal(data, &file); err != nil || !file.Removed && (file.Given == nil || keyOf(viewOf(file.Given)) != key) {
			r.log.Warn("a record of a container makes no sense: what the database has must do", "file", r.ownedFile(key), "err", err)
			_ = os.Remove(r.ownedFile(key))
			continue
		}
		files[key] = file
		r.written++
		r.writes[key] = r.written
	}
	return files, nil
}

// overlaid is a record with what its file says of the container. How it fares
// stays.
func overlaid(rec record, g *spec.Given) record {
	state := rec.Container.State
	rec.Container, rec.given, rec.fresh = *viewOf(g), g, true
	rec.Container.State = state
	return rec
}

func (r *records) goOnRemoving(key string) {
	number := r.writes[key]
	r.db.LaterThen(func(tx *kv.Tx) error {
		for _, name := range []string{bucket, givenBucket} {
			if err := tx.Delete(name, key); err != nil {
				return err
			}
		}
		return nil
	}, func() { r.settle(key, number) })
}

// goOnWriting does it for one that there is.
func (r *records) goOnWriting(c *container) {
	r.mu.Lock()
	number := r.writes[c.id]
	r.mu.Unlock()
	given := c.given.Load()
	c.mu.Lock()
	c.recorded = nil
	c.mu.Unlock()
	r.db.LaterThen(func(tx *kv.Tx) error { return r.put(tx, c) }, func() {
		c.mu.Lock()
		c.recorded = given
		c.mu.Unlock()
		r.settle(c.id, number)
	})
}
