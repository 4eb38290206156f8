package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// taskFile is where the record of a container's task lies: in the folder that a
// reboot empties, outside of the bundle, which goes before the task does.
func (s *Set) taskFile(id string) string { return filepath.Join(s.State, "tasks", id) }

// writeTask makes the file say what is in memory: whoever kills the node finds
// the one or the other, whole. It costs no disk.
func (s *Set) writeTask(c *container) error {
	c.files.Lock()
	defer c.files.Unlock()
	file := s.taskFile(c.id)
	t := c.task.Load()
	if t == nil {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the task: %w", err)
		}
		return nil
	}
	record := t.taskRecord
	record.Execs = c.execRecords()
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("record the task: %w", err)
	}
	if err := replaceFile(file, data); err != nil {
		return fmt.Errorf("record the task: %w", err)
	}
	return nil
}

// replaceFile writes a file at once or not at all.
func replaceFile(name string, data []byte) error {
	next := name + partSuffix
	err := os.WriteFile(next, data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(name), 0o700); err == nil {
			err = os.WriteFile(next, data, 0o600)
		}
	}
	if err != nil {
		return err
	}
	return os.Rename(next, name)
}

// partSuffix ends the name of a file that is being written. No id ends so.
const partSuffix = "~"

// readTask reads the record of a container's task; nil where it has none.
func (s *Set) readTask(id string) (*taskRecord, error) {
	data, err := os.ReadFile(s.taskFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	record := &taskRecord{}
	if err := json.Unmarshal(data, record); err != nil {
		s.Log.Warn("the record of a task makes no sense: the task is ended", "file", s.taskFile(id), "err", err)
		return nil, nil
	}
	return record, nil
}
