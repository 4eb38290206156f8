package pod

import (
	"context"
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
	// Last is set of one that is being removed: Container says how it was then.
	Last bool `json:"last,omitempty"`
}

// records keeps them on both sides of a reboot.
type records struct {
	*kv.DB
	dir, boot string
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
	if err != nil || len(gone) == 0 {
		return f, err
	}
	return f, r.Update(ctx, func(tx *kv.Tx) error {
		for _, g := range gone {
			if err := tx.Delete(g[0], g[1]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *records) readFiles() (f found, err error) {
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
		if err != nil {
			return f, err
		}
		f.pods = append(f.pods, *rec)
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
		if err != nil {
			return err
		}
		f.containers = append(f.containers, *rec)
	}
	return nil
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
