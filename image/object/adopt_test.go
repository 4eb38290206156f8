package object_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	b := begin(t, s)
	file := filepath.Join(dir, "upper")
	body := random(1, 100_000)
	os.WriteFile(file, body, 0o600)
	os.Chown(file, 7, 8)
	os.Chmod(file, 0o4755)
	if err := unix.Setxattr(file, "user.note", []byte("x"), 0); err != nil {
		t.Logf("no xattrs: %v", err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = b.Adopt(t.Context(), f, int64(len(body)-1))
	want(t, errs.Conflict, err, "adopt with another size")
	for range 2 {
		d, err := b.Adopt(t.Context(), f, int64(len(body)))
		if err != nil || !bytes.Equal(bodyOf(t, s, d), body) {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
		if err := s.Own(d); err != nil {
			t.Error(err)
		}
		object := filepath.Join(s.Dir(), object.Name(d))
		st, err := os.Stat(object)
		if err != nil || st.Mode() != 0o600 {
			t.Errorf("object is %v, %v", st, err)
		}
		if n, _ := unix.Listxattr(object, make([]byte, 100)); n > 0 {
			t.Error("object has xattrs")
		}
	}
	// A copy where the file is elsewhere.
	shm, err := os.CreateTemp("/dev/shm", "object-test")
	if err != nil {
		t.Skip(err)
	}
	defer os.Remove(shm.Name())
	other := slices.Concat(random(2, 1<<20), make([]byte, 1<<20))
	shm.Write(other)
	d, err := b.Adopt(t.Context(), shm, int64(len(other)))
	if err != nil || !bytes.Equal(bodyOf(t, s, d), other) {
		t.Errorf("adopt from another file system: %v", err)
	}
	if names := left(t, s); len(names) > 0 {
		t.Errorf("left %q", names)
	}
}

// A file that somebody writes to is not adopted.
func TestAdoptOfChangingFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	b := begin(t, s)
	f, err := os.Create(filepath.Join(dir, "upper"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(64 << 20)
	stop, running := make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			f.WriteAt([]byte{byte(i), byte(i >> 8)}, int64(i)%(64<<20-2))
			if i == 100 {
				close(running)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	<-running
	_, err = b.Adopt(t.Context(), f, 64<<20)
	close(stop)
	<-ended
	want(t, errs.Conflict, err, "adopt")
	s.Walk(t.Context(), func(d tree.Digest, _ int64) error { t.Errorf("object %x", d); return nil })
}

func TestSeal(t *testing.T) {
	s := open(t, t.TempDir())
	b := begin(t, s)
	body := random(1, 2*object.SealFrom)
	d := put(t, b, body)
	small := put(t, b, random(2, 10_000))
	if _, err := s.Seal(t.Context(), small); err != nil {
		t.Error(err)
	}
	if f, err := os.OpenFile(filepath.Join(s.Dir(), object.Name(small)), os.O_WRONLY, 0); err != nil {
		t.Errorf("a small body is sealed: %v", err)
	} else {
		f.Close()
	}
	for range 2 {
		sealed, err := s.Seal(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		f, openErr := os.OpenFile(filepath.Join(s.Dir(), object.Name(d)), os.O_WRONLY, 0)
		if openErr == nil {
			f.Close()
		}
		if sealed == (openErr == nil) {
			t.Errorf("sealed %v, opened to be written: %v", sealed, openErr)
		}
		t.Logf("sealed: %v", sealed)
	}
	if err := s.Replace(d, bytes.NewReader(body)); err != nil {
		t.Error(err)
	}
}

// What is adopted may be the last good copy of an object that has rotted, or
// was lost.
func TestAdoptMends(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	b := begin(t, s)
	body := random(1, 100_000)
	d, err := b.Put(body)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Dir(), object.Name(d))
	for name, damage := range map[string]func() error{
		"other bytes": func() error { return os.WriteFile(path, random(2, 100_000), 0o600) },
		"cut short":   func() error { return os.Truncate(path, 5000) },
		"lost":        func() error { return os.Remove(path) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "upper")
		os.WriteFile(file, body, 0o600)
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := b.Adopt(t.Context(), f, int64(len(body))); err != nil || got != d {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		f.Close()
		if got := bodyOf(t, s, d); !bytes.Equal(got, body) {
			t.Errorf("%s: the object still is", name)
		}
	}
}
