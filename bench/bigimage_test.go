package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

// The image is what the table says it is, and the same each time.
func TestBigImage(t *testing.T) {
	shares := 0
	for _, share := range bigShares {
		shares += share
	}
	if shares != 1000 || len(bigShares) != 11 {
		t.Fatalf("%d layers of %d thousandths", len(bigShares), shares)
	}
	last := len(bigShares) - 1
	layer, err := bigLayer(last)
	if err != nil {
		t.Fatal(err)
	}
	again, err := bigLayer(last)
	if err != nil {
		t.Fatal(err)
	}
	if layer.Digest != again.Digest || layer.diff != again.diff {
		t.Error("another layer the second time")
	}
	plain, err := gzip.NewReader(bytes.NewReader(layer.data))
	if err != nil {
		t.Fatal(err)
	}
	files, size := 0, int64(0)
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
	if want := bigFiles * bigShares[last] / 1000; files != want {
		t.Errorf("%d files, want %d", files, want)
	}
	if want := int64(bigBytes / 1000 * bigShares[last]); size != want {
		t.Errorf("%d bytes, want %d", size, want)
	}
	if ratio := float64(size) / float64(len(layer.data)); ratio < 2.2 || ratio > 2.8 {
		t.Errorf("gzip makes it %.2f times smaller, want about 2.5", ratio)
	}
}
