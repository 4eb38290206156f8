package object_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/image/object"
	"berth/image/tree"
)

// After a loss of power, bodies that were not yet on disk are short, zeros or
// gone.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	b := begin(t, s)
	var all []tree.Digest
	for i := range 40 {
		all = append(all, put(t, b, random(uint64(i), 1000+i*3000)))
	}
	b.End()
	for i, d := range all[:30] {
		file := filepath.Join(s.Dir(), object.Name(d))
		switch i % 3 {
		case 0:
			os.Truncate(file, 0)
		case 1:
			os.Truncate(file, 500)
		case 2:
			f, _ := os.OpenFile(file, os.O_WRONLY, 0)
			f.WriteAt(make([]byte, 1000), 0)
			f.Close()
		}
	}
	os.WriteFile(filepath.Join(s.Dir(), "tmp-9"), []byte("x"), 0o600)
	otherBoot(t, dir, time.Now())
	s = open2(t, dir, s)
	b = begin(t, s)
	for i, d := range all {
		if got := s.Has(d); got != (i >= 30) {
			t.Errorf("object %d is here: %v", i, got)
		}
	}
	for i := range 40 {
		if d := put(t, b, random(uint64(i), 1000+i*3000)); s.Verify(t.Context(), d) != nil {
			t.Errorf("object %d is damaged after it was stored again", i)
		}
	}
	if names := left(t, s); len(names) > 0 {
		t.Errorf("left %q", names)
	}
}

// otherBoot makes the epoch one of another boot that began at a time.
func otherBoot(t *testing.T, dir string, at time.Time) {
	t.Helper()
	file := filepath.Join(dir, "pending", "epoch")
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("no epoch: %v", err)
	}
	text := fmt.Sprintf("00000000-0000-0000-0000-000000000000 %d\n", at.UnixNano())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Only bodies of the epoch are read again; all of them where its file is
// damaged.
func TestEpoch(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pending", "epoch")
	exists := func() bool { _, err := os.Stat(file); return err == nil }
	s := open(t, dir)
	if exists() {
		t.Error("an epoch before there is a batch")
	}
	b := begin(t, s)
	d := put(t, b, random(1, 5000))
	if !exists() {
		t.Error("no epoch while there is a batch")
	}
	if err := s.Sync(t.Context()); err != nil || !exists() {
		t.Errorf("no epoch after a sync while there is a batch: %v", err)
	}
	b.End()
	if err := s.Sync(t.Context()); err != nil || exists() {
		t.Errorf("an epoch after a sync with no batch: %v", err)
	}
	begin(t, s).End()
	os.Truncate(filepath.Join(s.Dir(), object.Name(d)), 100)

	otherBoot(t, dir, time.Now().Add(time.Hour))
	s = open2(t, dir, s)
	begin(t, s).End()
	want(t, errs.Invalid, s.Verify(t.Context(), d), "an old body is not read again")

	os.WriteFile(file, nil, 0o600)
	s = open2(t, dir, s)
	begin(t, s).End()
	want(t, errs.NotFound, s.Verify(t.Context(), d), "all bodies are read again")
}

// The test program itself is the process to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BERTH_OBJECT_STORE"); dir != "" {
		storeForEver(dir)
	}
	os.Exit(m.Run())
}

func storeForEver(dir string) {
	ctx := context.Background()
	s, err := object.Open(ctx, object.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	for i := uint64(0); ; i++ {
		b, err := s.Begin(ctx)
		if err != nil {
			panic(err)
		}
		var wg sync.WaitGroup
		for j := range uint64(4) {
			wg.Go(func() {
				body := random(i*4+j, rand.IntN(2)*9<<20+rand.IntN(2<<20))
				b.PutFrom(bytes.NewReader(body), -1)
			})
		}
		wg.Wait()
		b.End()
		if i%8 == 0 {
			s.Sync(ctx)
		}
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 4 {
		p, err := os.StartProcess("/proc/self/exe", []string{"object.test"}, &os.ProcAttr{
			Env: append(os.Environ(), "BERTH_OBJECT_STORE="+dir), Files: []*os.File{nil, nil, os.Stderr},
		})
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(100+70*round) * time.Millisecond)
		p.Kill()
		p.Wait()
		s := open(t, dir)
		begin(t, s).End()
		n := 0
		err = s.Walk(t.Context(), func(d tree.Digest, _ int64) error { n++; return s.Verify(t.Context(), d) })
		if err != nil {
			t.Error(err)
		}
		if names := left(t, s); len(names) > 0 {
			t.Errorf("left %q", names)
		}
		if round == 3 && n == 0 {
			t.Error("nothing was stored")
		}
		s.Close()
	}
}

// tmpfs is a small file system of its own.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs root, to mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// Where there is no room, nothing broken stays, and the store goes on when
// there is.
func TestNoRoom(t *testing.T) {
	for _, options := range []string{"size=12m", "nr_inodes=60"} {
		t.Run(options, func(t *testing.T) { noRoom(t, tmpfs(t, options)) })
	}
}

func noRoom(t *testing.T, dir string) {
	s := open(t, dir)
	b := begin(t, s)
	elsewhere, err := os.CreateTemp(t.TempDir(), "upper")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	elsewhere.Write(random(99, 300_000))
	var first tree.Digest
	ways := map[string]func(i uint64) (tree.Digest, error){
		"Put":       func(i uint64) (tree.Digest, error) { return b.Put(random(i, 200_000)) },
		"small Put": func(i uint64) (tree.Digest, error) { return b.Put(random(i, 5000)) },
		"held": func(i uint64) (tree.Digest, error) {
			d, _, err := b.PutFrom(bytes.NewReader(random(i, 3<<20)), -1)
			return d, err
		},
		"big": func(i uint64) (tree.Digest, error) {
			d, _, err := b.PutFrom(bytes.NewReader(random(i, 10<<20)), -1)
			return d, err
		},
		"big sparse": func(i uint64) (tree.Digest, error) { return bigSparse(b, i) },
	}
	for name, way := range ways {
		for i := uint64(0); ; i++ {
			d, err := way(i)
			if err != nil {
				want(t, errs.Exhausted, err, name)
				break
			}
			first = d
		}
	}
	_, err = b.Adopt(t.Context(), elsewhere, 300_000)
	want(t, errs.Exhausted, err, "adopt")
	want(t, errs.Exhausted, s.Replace(first, bytes.NewReader(bodyOf(t, s, first))), "replace")
	if names := left(t, s); len(names) > 0 {
		t.Errorf("left %q", names)
	}
	b.End()
	err = s.Sync(t.Context())
	if err == nil {
		_, err = s.Begin(t.Context()) // whose epoch needs an inode
	}
	if err != nil && !errors.Is(err, errs.Exhausted) {
		t.Errorf("begin: %v", err)
	}
	var all []tree.Digest
	err = s.Walk(t.Context(), func(d tree.Digest, _ int64) error { all = append(all, d); return s.Verify(t.Context(), d) })
	if err != nil || len(all) == 0 {
		t.Errorf("%d objects, %v", len(all), err)
	}
	if _, _, err := s.Sweep(t.Context(), func(yield func(tree.Digest) bool) {
		for _, d := range all {
			if !yield(d) {
				return
			}
		}
	}, object.Full); err != nil {
		t.Error(err)
	}
	b = begin(t, s)
	for name, way := range ways {
		if name == "big" {
			continue
		}
		if d, err := way(7); err != nil || s.Verify(t.Context(), d) != nil {
			t.Errorf("%s after there is room: %v", name, err)
		}
	}
}

func bigSparse(b *object.Batch, i uint64) (tree.Digest, error) {
	d, _, err := b.PutFrom(io.MultiReader(bytes.NewReader(random(i, 1<<20)), io.LimitReader(zero{}, 9<<20)), -1)
	return d, err
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }
