package main

import (
	"archive/tar"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// The image is what the rows say it is, the same each time, and its folders
// lie in many layers.
func TestLayeredImage(t *testing.T) {
	s := newSource()
	total, places := 0, map[int]int{}
	for file, size := range s.sizes {
		total += size
		places[s.place(layered{}, file)]++
	}
	if len(s.sizes) != layeredFiles || total < layeredBytes || total > layeredBytes*11/10 {
		t.Errorf("%d files of %d bytes", len(s.sizes), total)
	}
	if len(places) != layeredLayers {
		t.Errorf("files in %d layers", len(places))
	}
	first, err := s.layer(layered{}, 7)
	if err != nil {
		t.Fatal(err)
	}
	again, err := newSource().layer(layered{}, 7)
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest != again.Digest {
		t.Error("another layer the second time")
	}
	for _, l := range variants()[1:] {
		if l.top || l.tag == "config" {
			continue // they have the same layers
		}
		if other, err := s.layer(l, 7); err != nil || other.diff == first.diff {
			t.Errorf("%s has the same layer: %v", l.tag, err)
		}
	}
}

func TestShelf(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: makes a whole image")
	}
	s := shelf(t.TempDir())
	if err := s.fill(variants()[:1], func(string) {}); err != nil {
		t.Fatal(err)
	}
	image, err := s.image("first")
	if err != nil {
		t.Fatal(err)
	}
	files, size := 0, int64(0)
	for _, digest := range image.Layers {
		f, err := os.Open(s.blob(digest))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		plain, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(plain); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				files++
				size += h.Size
			}
		}
	}
	t.Logf("%d layers, %d files, %d bytes, %d compressed", len(image.Layers), files, size, image.Bytes)
	if files != layeredFiles {
		t.Errorf("%d files", files)
	}
}
