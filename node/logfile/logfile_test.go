package logfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/base/errs"
	"berth/node/logfile"
)

var noon = time.Date(2026, 3, 31, 12, 0, 0, 5, time.UTC)

func format(at time.Time, s logfile.Stream, text string) []byte {
	data, n := logfile.Append(nil, 1<<30, at, s, []byte(text))
	if n != len(text) {
		panic("not all taken")
	}
	return data
}

func TestAppend(t *testing.T) {
	const head = "2026-03-31T12:00:00.000000005Z std"
	long := strings.Repeat("x", logfile.MaxText)
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"\n", "out F \n"},
		{"a\nb\n", "out F a\n" + head + "out F b\n"},
		{"a\nb", "out F a\n" + head + "out P b\n"},
		{long, "out P " + long + "\n"},
		{long + "\n", "out F " + long + "\n"},
		{long + "y\n", "out P " + long + "\n" + head + "out F y\n"},
	} {
		want := tt.want
		if want != "" {
			want = head + want
		}
		if got := format(noon, logfile.Stdout, tt.text); string(got) != want {
			t.Errorf("%.20q: %.100q", tt.text, got)
		}
	}
	// No more than there is room for, and whole records only.
	got, n := logfile.Append(nil, 100, noon, logfile.Stderr, []byte("a\nb\nc\nd\n"))
	if n != 4 || bytes.Count(got, []byte("\n")) != 2 {
		t.Errorf("took %d: %q", n, got)
	}
}

// fill writes lines from to to-1 through a writer.
func fill(t *testing.T, w *logfile.Writer, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		rec := format(noon.Add(time.Duration(i)*time.Second), logfile.Stdout, fmt.Sprintln(i))
		if err := w.Reserve(len(rec)); err != nil {
			t.Fatal(err)
		}
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
}

func writer(t *testing.T, maxSize int64, maxFiles int) (*logfile.Writer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	w, err := logfile.OpenWriter(path, maxSize, maxFiles)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w, path
}

// text reads all that q asks for.
func text(t *testing.T, path string, q logfile.Query) string {
	t.Helper()
	var b strings.Builder
	err := logfile.Read(t.Context(), path, q, func(l logfile.Line) error {
		b.Write(l.Text)
		if !l.Partial {
			b.WriteByte('\n')
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func numbers(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

func TestRotation(t *testing.T) {
	w, path := writer(t, 1000, 3)
	fill(t, w, 0, 100)
	files, _ := filepath.Glob(path + "*")
	slices.Sort(files)
	if want := []string{path, path + ".1", path + ".2"}; !slices.Equal(files, want) {
		t.Errorf("files %v", files)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 1000 {
			t.Errorf("%s: %v %v", f, info.Size(), err)
		}
	}
	got := text(t, path, logfile.Query{Tail: -1})
	if !strings.HasSuffix(numbers(0, 100), got) || strings.Count(got, "\n") < 40 {
		t.Errorf("got %q", got)
	}
	one, onePath := writer(t, 1000, 0)
	fill(t, one, 0, 100)
	if files, _ := filepath.Glob(onePath + "*"); len(files) != 1 {
		t.Errorf("files %v", files)
	}
}

// A writer killed in the middle of a rotation leaves a name free.
func TestRotationInterrupted(t *testing.T) {
	w, path := writer(t, 1000, 1000)
	for i := range 10 {
		fill(t, w, 100*i, 100*i+100)
		free := 1
		for _, err := os.Stat(logfile.Rotated(path, free)); err == nil; _, err = os.Stat(logfile.Rotated(path, free)) {
			free++
		}
		for n := free - 1; n >= i%4; n-- { // it got no further
			if err := os.Rename(logfile.Rotated(path, n), logfile.Rotated(path, n+1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Reopen(); err != nil {
			t.Fatal(err)
		}
		if got := text(t, path, logfile.Query{Tail: -1}); got != numbers(0, 100*i+100) {
			t.Fatalf("after %d: %d bytes", i, len(got))
		}
	}
}

func TestTail(t *testing.T) {
	w, path := writer(t, 5000, 10)
	fill(t, w, 0, 500)
	for _, n := range []int{0, 1, 2, 99, 100, 101, 250, 499, 500, 501, 1000} {
		if got, want := text(t, path, logfile.Query{Tail: n}), numbers(max(0, 500-n), 500); got != want {
			t.Errorf("tail %d: %d bytes, want %d", n, len(got), len(want))
		}
	}
	if err := w.Write(format(noon, logfile.Stdout, strings.Repeat("y", 100000)+"\nend")); err != nil {
		t.Fatal(err)
	}
	for n, want := range []string{"", "end", strings.Repeat("y", 100000) + "\nend", "499\n" + strings.Repeat("y", 100000) + "\nend"} {
		if got := text(t, path, logfile.Query{Tail: n}); got != want {
			t.Errorf("tail %d of partial records: %d bytes, want %d", n, len(got), len(want))
		}
	}
}

func TestSelect(t *testing.T) {
	w, path := writer(t, 1000, 100)
	fill(t, w, 0, 100)
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Second) }
	end, err := logfile.End(path)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, w, 100, 200)
	for _, tt := range []struct {
		name string
		q    logfile.Query
		want string
	}{
		{"since", logfile.Query{Tail: -1, Since: at(190)}, numbers(190, 200)},
		{"until", logfile.Query{Tail: -1, Until: at(9)}, numbers(0, 10)},
		{"both", logfile.Query{Tail: -1, Since: at(5), Until: at(9)}, numbers(5, 10)},
		{"from", logfile.Query{Tail: -1, From: end}, numbers(100, 200)},
		{"from and skip", logfile.Query{Tail: -1, From: end, Skip: 8}, numbers(102, 200)},
		{"skip into a line", logfile.Query{Tail: -1, From: end, Skip: 2}, numbers(100, 200)[2:]},
		{"skip but the newline", logfile.Query{Tail: -1, From: end, Skip: 3}, numbers(100, 200)[3:]},
		{"from, that is gone", logfile.Query{Tail: -1, From: "1:0"}, numbers(0, 200)},
		{"follow until", logfile.Query{Tail: -1, Follow: true, Until: at(9)}, numbers(0, 10)},
	} {
		if got := text(t, path, tt.q); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	if err := logfile.Read(t.Context(), path, logfile.Query{From: "x"}, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("bad position: %v", err)
	}
	if got := text(t, path+"-missing", logfile.Query{Tail: -1}); got != "" {
		t.Errorf("missing log: %q", got)
	}
	if p, err := logfile.End(path + "-missing"); p != "" || err != nil {
		t.Errorf("end of missing log: %q %v", p, err)
	}
}

func TestTornAndForeignRecords(t *testing.T) {
	w, path := writer(t, 0, 0)
	fill(t, w, 0, 3)
	if err := w.Write([]byte("garbage\n\n2026-03-31T12:00:00Z stderr P:x some text\n2026-03-31T12:00:00Z stdout F\n2026-03-31T12:0")); err != nil {
		t.Fatal(err)
	}
	if got, want := text(t, path, logfile.Query{Tail: -1}), numbers(0, 3)+"some text\n"; got != want {
		t.Errorf("%q", got)
	}
	if got := text(t, path, logfile.Query{Tail: 2}); got != "2\nsome text\n" && got != "some text\n" {
		t.Errorf("tail: %q", got)
	}
	end, err := logfile.End(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write([]byte("0:00Z stdout F whole now\n")); err != nil {
		t.Fatal(err)
	}
	if got := text(t, path, logfile.Query{Tail: -1, From: end}); got != "whole now\n" {
		t.Errorf("from the end in a torn record: %q", got)
	}
	if err := w.Write([]byte(strings.Repeat("\x00", 48) + "2026-03-31T12:00:01Z stdout F after the power cut\n")); err != nil {
		t.Fatal(err)
	}
	for _, tail := range []int{-1, 1} {
		if got := text(t, path, logfile.Query{Tail: tail}); !strings.HasSuffix(got, "\nafter the power cut\n") && got != "after the power cut\n" {
			t.Errorf("behind zeros: %q", got)
		}
	}
}

func TestFollow(t *testing.T) {
	w, path := writer(t, 2000, 4) // far fewer than a slow reader is behind
	ended, slow := make(chan struct{}), make(chan struct{})
	got, done := make(chan string, 1), make(chan error, 1)
	fill(t, w, 0, 10)
	go func() {
		var b strings.Builder
		done <- logfile.Read(t.Context(), path, logfile.Query{Tail: -1, Follow: true, Ended: ended}, func(l logfile.Line) error {
			b.Write(l.Text)
			b.WriteByte('\n')
			if string(l.Text) == "20" {
				slow <- struct{}{}
				<-slow
			}
			return nil
		})
		got <- b.String()
	}()
	fill(t, w, 10, 30)
	<-slow
	for i := 30; i < 1000; i += 10 {
		fill(t, w, i, i+10)
		time.Sleep(time.Millisecond) // the watcher is not slow, only fn is
	}
	slow <- struct{}{}
	fill(t, w, 1000, 1050)
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != numbers(0, 1050) {
		t.Errorf("%d bytes, want %d: …%.200q", len(g), len(numbers(0, 1050)), g[max(0, len(g)-200):])
	}
}

// Files that are renamed while a follower looks for new ones come in their order.
func TestFollowWhileItRotates(t *testing.T) {
	for range 5 {
		const lines = 150
		w, path := writer(t, 1, lines+1) // a file for each line
		ended, read := make(chan struct{}), make(chan error, 1)
		var got []string
		reader, err := logfile.Open(path, logfile.Query{Tail: -1, Follow: true, Ended: ended})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			read <- reader.Each(t.Context(), func(l logfile.Line) error { got = append(got, string(l.Text)); return nil })
		}()
		fill(t, w, 0, lines)
		close(ended)
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		reader.Close()
		for i, line := range got {
			if line != fmt.Sprint(i) {
				t.Fatalf("line %d is %s", i, line)
			}
		}
		if len(got) != lines {
			t.Fatalf("%d lines of %d", len(got), lines)
		}
	}
}

func TestFollowBeforeItExists(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	lines, done := make(chan string, 10), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- logfile.Read(ctx, path, logfile.Query{Tail: -1, Follow: true}, func(l logfile.Line) error {
			lines <- string(l.Text)
			return nil
		})
	}()
	w, err := logfile.OpenWriter(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fill(t, w, 7, 8)
	if got := <-lines; got != "7" {
		t.Errorf("%q", got)
	}
	if err := os.Rename(path, path+".bak"); err != nil { // as kubelet rotates
		t.Fatal(err)
	}
	fill(t, w, 8, 9)
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	fill(t, w, 9, 10)
	if a, b := <-lines, <-lines; a != "8" || b != "9" {
		t.Errorf("%q %q", a, b)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestRewrite(t *testing.T) {
	for _, written := range []int{0, 20, 100} { // how much of the records the dead writer got out
		w, path := writer(t, 0, 0)
		fill(t, w, 0, 3)
		inode, offset := w.Where()
		rec := format(noon, logfile.Stdout, numbers(3, 9))
		if err := w.Write(rec[:written]); err != nil {
			t.Fatal(err)
		}
		next, err := logfile.OpenWriter(path, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Rewrite(inode, offset, format(noon.Add(time.Minute), logfile.Stdout, numbers(3, 9))); err != nil {
			t.Fatal(err)
		}
		fill(t, next, 9, 12)
		if got := text(t, path, logfile.Query{Tail: -1}); got != numbers(0, 12) {
			t.Errorf("%d written: %q", written, got)
		}
		_ = next.Close()
	}
	// The file was renamed meanwhile: nothing is doubled.
	w, path := writer(t, 0, 0)
	fill(t, w, 0, 3)
	inode, offset := w.Where()
	rec := format(noon, logfile.Stdout, numbers(3, 9))
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	next, err := logfile.OpenWriter(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.Rewrite(inode, offset, rec); err != nil {
		t.Fatal(err)
	}
	if got := text(t, path, logfile.Query{Tail: -1}); got != numbers(0, 9) {
		t.Errorf("renamed: %q", got)
	}
}

func BenchmarkRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	rec := bytes.Repeat(format(noon, logfile.Stdout, strings.Repeat("x", 80)+"\n"), 100000)
	if err := os.WriteFile(path, rec, 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(rec)))
	for b.Loop() {
		if err := logfile.Read(b.Context(), path, logfile.Query{Tail: -1}, func(logfile.Line) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
