package logfile

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	for _, s := range []string{
		"2026-11-21T03:40:00.000000000Z", "2026-12-31T23:59:59.999999999Z", "2024-02-29T00:00:00.123456789Z",
		"2026-11-21T03:40:00Z", "2026-11-21T03:40:00.5+02:00",
		"2026-02-31T00:00:00.000000000Z", "2026-11-21T24:00:00.000000000Z", "2026-11-21T03:40:00.00000000xZ", "x",
	} {
		want, wantErr := time.Parse(time.RFC3339Nano, s)
		got, err := parseTime([]byte(s))
		if !got.Equal(want) || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %v %v, want %v %v", s, got, err, want, wantErr)
		}
	}
}

// What any writer left in a file must not stop or confuse a reader, and what
// was appended must come back.
func FuzzRead(f *testing.F) {
	f.Add([]byte("2026-11-21T03:40:00.000000000Z stdout F text\n"), []byte("a\nb"))
	f.Add([]byte("2026-11-21T03:40:00Z stderr P:x \n\n\x00 stdout"), []byte{0, '\n'})
	path := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, junk, text []byte) {
		for record := range bytes.Lines(junk) {
			if l, err := parse(bytes.TrimSuffix(record, []byte("\n"))); err == nil && bytes.IndexByte(l.Text, '\n') >= 0 {
				t.Errorf("newline in %q", l.Text)
			}
		}
		data := append(bytes.Clone(junk), '\n')
		end := len(data)
		data, n := Append(data, 1<<20, time.Unix(1e9, 0), Stderr, text)
		if n != len(text) {
			t.Fatalf("took %d of %d", n, len(text))
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSegment(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.file.Close()
		all, last := 0, []byte(nil)
		buf := make([]byte, 64)
		count := func(Line) error { all++; return nil }
		if err := s.read(&buf, count); err != nil {
			t.Fatal(err)
		}
		s.offset = int64(end)
		if err := s.read(&buf, func(l Line) error {
			last = append(last, l.Text...)
			if !l.Partial {
				last = append(last, '\n')
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(last, text) {
			t.Errorf("read %q, want %q", last, text)
		}
		// Backwards finds the same records.
		back := 0
		if err := backwards(s.file, 0, int64(len(data)), func(int64, bool) bool { back++; return true }); err != nil {
			t.Fatal(err)
		}
		if back != all {
			t.Errorf("%d records forwards, %d backwards", all, back)
		}
	})
}
