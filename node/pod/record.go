package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"berth/base/kv"
	"berth/spec"
)

const (
	podBucket       = "pod"
	containerBucket = "podcontainer"
)

// phase is how far a pod or a container has come.
type phase string

const (
	making   phase = "making"   // nobody was told of it yet
	made     phase = "made"     // of a pod: it is ready
	stopping phase = "stopping" // of a pod
	stopped  phase = "stopped"  // of a pod: it has nothing but its record and its containers
	removing phase = "removing"
)

// podRecord is what outlives the node of a pod. It is never changed but
// replaced.
type podRecord struct {
	Pod   spec.Pod `json:"pod"`
	Phase phase    `json:"phase"`
	Boot  string   `json:"boot"`
	Pause bool     `json:"pause,omitempty"` // it may have a pause container
	// Restoring is set until its containers are made of a checkpoint too: before,
	// nobody was told of it.
	Restoring bool `json:"restoring,omitempty"`
}

// containerRecord is likewise of a container of a pod. Of Container only what
// does not change by itself is kept here.
type containerRecord struct {
	Container spec.PodContainer `json:"container"`
	Phase     phase             `json:"phase"`
	Boot      string            `json:"boot"`
	Volumes   int               `json:"volumes,omitempty"` // images mounted as volumes
	Started   bool              `json:"started,omitempty"` // its start was tried
	// Failure is set where it could not be started. Reason and Message of
	// Container are then of it; Finished too.
	Failure bool `json:"failure,omitempty"`
	// Lost is set where a reboot took it.
	Lost bool `json:"lost,omitempty"`
	// Frozen is the folder of a checkpoint that is being written: until it is,
	// the container stands still.
	Frozen string `json:"frozen,omitempty"`
	// Restore is set of one that goes on from a checkpoint when it is started.
	Restore bool `json:"restore,omitempty"`
	// Last is set of one that is being removed: Container says how it was then.
	Last bool `json:"last,omitempty"`
}

// records keeps them on both sides of a reboot.
type records struct {
	*kv.DB
	dir, boot string
	log       *slog.Logger
}

func (r *records) podDir(id string) string { return filepath.Join(r.dir, id) }

func (r *records) podFile(id string) string { return filepath.Join(r.dir, id, "pod.json") }

func (r *records) containerFile(pod, id string) string {
	return filepath.Join(r.dir, pod, id+".json")
}

func (r *records) putPod(rec *podRecord) error {
	return r.put(podBucket, rec.Pod.ID, r.podFile(rec.Pod.ID), rec)
}

func (r *records) putContainer(rec *containerRecord) error {
	c := &rec.Container
	return r.put(containerBucket, c.ID, r.containerFile(c.Pod, c.ID), rec)
}

func (r *records) put(bucket, id, file string, rec any) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	if err := replaceFile(file, data); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	r.Later(func(tx *kv.Tx) error { return tx.Put(bucket, id, data) })
	return nil
}

func (r *records) dropContainer(pod, id string) error {
	if err := os.Remove(r.containerFile(pod, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", id, err)
	}
	r.Later(func(tx *kv.Tx) error { return tx.Delete(containerBucket, id) })
	return nil
}

// dropPod takes the pod's folder away.
func (r *records) dropPod(id string) error {
	if err := unmountBelow(r.podDir(id)); err != nil {
		return fmt.Errorf("forget %s: %w", id, err)
	}
	// The record goes last but for the folder itself: until then a node that
	// comes after this one knows of the pod.
	entries, err := os.ReadDir(r.podDir(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", id, err)
	}
	for _, e := range entries {
		if e.Name() != "pod.json" {
			if err := os.RemoveAll(filepath.Join(r.podDir(id), e.Name())); err != nil {
				return fmt.Errorf("forget %s: %w", id, err)
			}
		}
	}
	if err := os.RemoveAll(r.podDir(id)); err != nil {
		return fmt.Errorf("forget %s: %w", id, err)
	}
	r.Later(func(tx *kv.Tx) error { return tx.Delete(podBucket, id) })
	return nil
}

// found is what there is on record.
type found struct {
	pods       []podRecord
	containers []containerRecord
	strays     []string // folders of pods that were gone but for them

	// Files that make no sense, by the ids of what they were about. What the
	// buckets say has to do.
	spoiled map[string]string
}

// read gives what the files say, and what the buckets say of before this boot.
// What only the buckets know of this boot was taken away.
func (r *records) read(ctx context.Context) (found, error) {
	f, err := r.readFiles()
	if err != nil {
		return f, err
	}
	known := map[string]bool{}
	for i := range f.pods {
		known[f.pods[i].Pod.ID] = true
	}
	for i := range f.containers {
		known[f.containers[i].Container.ID] = true
	}
	var gone [][2]string
	collect := func(bucket, id, boot string) bool {
		switch {
		case known[id]:
			return false
		case f.spoiled[id] != "":
			return true
		case boot == r.boot:
			gone = append(gone, [2]string{bucket, id})
			return false
		}
		return true
	}
	err = r.View(func(tx *kv.Tx) error {
		return errors.Join(
			kv.EachJSON(tx, podBucket, "", func(id string, rec podRecord) error {
				if collect(podBucket, id, rec.Boot) {
					f.pods = append(f.pods, rec)
				}
				return nil
			}),
			kv.EachJSON(tx, containerBucket, "", func(id string, rec containerRecord) error {
				if collect(containerBucket, id, rec.Boot) {
					f.containers = append(f.containers, rec)
				}
				return nil
			}))
	})
	if err != nil {
		return f, err
	}
	r.mend(ctx, &f)
	if len(gone) == 0 {
		return f, nil
	}
	r.Later(func(tx *kv.Tx) error { // the disk may be full: the next start finds them again
		for _, g := range gone {
			if err := tx.Delete(g[0], g[1]); err != nil {
				return err
			}
		}
		return nil
	})
	return f, nil
}

// mend writes the files anew that made no sense, from what the buckets say. A
// pod or a container that is not there either is gone: what there is of it is
// swept away.
func (r *records) mend(ctx context.Context, f *found) {
	lost := maps.Clone(f.spoiled)
	write := func(id, file string, rec any) {
		if f.spoiled[id] == "" {
			return
		}
		delete(lost, id)
		data, err := json.Marshal(rec)
		if err == nil {
			err = replaceFile(file, data)
		}
		if err != nil {
			r.log.WarnContext(ctx, "the record of a pod cannot be mended", "file", file, "err", err)
		}
	}
	for i := range f.pods {
		write(f.pods[i].Pod.ID, r.podFile(f.pods[i].Pod.ID), &f.pods[i])
	}
	for i := range f.containers {
		c := &f.containers[i].Container
		write(c.ID, r.containerFile(c.Pod, c.ID), &f.containers[i])
	}
	for id, file := range lost {
		r.log.ErrorContext(ctx, "the record of a pod or container is lost, and with it what it was of", "file", file)
		if filepath.Base(file) == "pod.json" {
			f.strays = append(f.strays, id)
		} else if err := os.RemoveAll(file); err != nil {
			r.log.WarnContext(ctx, "a record that makes no sense stays", "file", file, "err", err)
		}
	}
}

func (r *records) readFiles() (f found, err error) {
	f.spoiled = map[string]string{}
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		rec, err := readFile[podRecord](r.podFile(e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			f.strays = append(f.strays, e.Name())
			continue
		}
		if err == nil && rec.Pod.ID == e.Name() {
			f.pods = append(f.pods, *rec)
		} else {
			r.spoil(&f, e.Name(), r.podFile(e.Name()), err)
		}
		if err := r.readMembers(e.Name(), &f); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (r *records) readMembers(pod string, f *found) error {
	entries, err := os.ReadDir(r.podDir(pod))
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || id == "pod" {
			continue
		}
		rec, err := readFile[containerRecord](r.containerFile(pod, id))
		if err == nil && rec.Container.ID == id && rec.Container.Pod == pod {
			f.containers = append(f.containers, *rec)
		} else {
			r.spoil(f, id, r.containerFile(pod, id), err)
		}
	}
	return nil
}

func (r *records) spoil(f *found, id, file string, err error) {
	r.log.Warn("the record of a pod or container makes no sense", "file", file, "err", err)
	f.spoiled[id] = file
}

func readFile[T any](name string) (*T, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// replaceFile writes a file at once or not at all.
func replaceFile(name string, data []byte) error {
	next := name + "~"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, name)
}
