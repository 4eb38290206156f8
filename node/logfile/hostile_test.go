package logfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/node/logfile"
)

// Whoever can write to the folder of a log decides neither where its records go
// nor whether the keeper goes on.
func TestNothingButAFileIsALog(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, plant := range map[string]func(folder, log string) error{
		"link":   func(_, log string) error { return os.Symlink(victim, log) },
		"pipe":   func(_, log string) error { return unix.Mkfifo(log, 0o666) },
		"device": func(_, log string) error { return unix.Mknod(log, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 7))) }, // full
		"folder": func(_, log string) error { return os.Mkdir(log, 0o755) },
		"link above": func(folder, _ string) error {
			if err := os.Rename(folder, folder+".old"); err != nil {
				return err
			}
			if err := os.Mkdir(filepath.Join(dir, "elsewhere"), 0o755); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(dir, "elsewhere"), folder)
		},
	} {
		folder := filepath.Join(dir, what)
		log := filepath.Join(folder, "0.log")
		check(os.WriteFile(victim, nil, 0o644))
		check(os.Mkdir(folder, 0o755))
		w, err := logfile.OpenWriter(log, 0, 0)
		check(err)
		check(os.Rename(log, log+".1"))
		if err := plant(folder, log); errors.Is(err, unix.EPERM) {
			t.Log("needs root:", what)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		reopened := make(chan error, 1)
		go func() { reopened <- w.Reopen() }()
		select {
		case err := <-reopened:
			if err == nil {
				t.Error(what, "is taken for a log")
			}
		case <-time.After(time.Minute):
			t.Fatal(what, "holds up who opens the log")
		}
		check(w.Write([]byte("a record\n"))) // to where it was
		check(w.Close())
		if text, _ := os.ReadFile(victim); len(text) > 0 {
			t.Errorf("%s: %q in another file", what, text)
		}
	}
	if found, _ := os.ReadDir(filepath.Join(dir, "elsewhere")); len(found) > 0 {
		t.Error("written elsewhere:", found)
	}
}
