package terminal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"berth/spec"
)

// What is no terminal is left alone.
func TestNoTerminal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, stream := range map[string]any{"buffer": &bytes.Buffer{}, "file": file, "null": null, "nothing": nil} {
		if Is(stream) || Colors(stream) || Size(stream) != (spec.Size{}) || Resizes(t.Context(), stream) != nil {
			t.Errorf("%s passes for a terminal", name)
		}
		restore, err := Raw(stream)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		restore()
		restore()
	}
}

// A slow reader gets the newest size and nobody waits for it.
func TestNewestSizeWins(t *testing.T) {
	sizes := make(chan spec.Size, 1)
	for rows := range uint16(5) {
		newest(sizes, spec.Size{Rows: rows})
	}
	if got := <-sizes; got.Rows != 4 {
		t.Errorf("got %d rows", got.Rows)
	}
}
