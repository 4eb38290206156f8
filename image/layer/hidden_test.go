package layer_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"testing"

	"berth/image/layer"
	"berth/image/tree"
)

// Bodies that a later entry hides are stored, for the tar needs them, and told
// apart: no tree names them.
func TestHidden(t *testing.T) {
	text := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 4000) }
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for i, name := range []string{"twice", "twice", "dir/in", "dir/deep/in", "linked", "", "small", "dir", "linked", "again", "again"} {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 4000}
		body := text(i)
		switch name {
		case "":
			h.Name, h.Typeflag, h.Linkname, h.Size, body = "link", tar.TypeLink, "linked", 0, nil
		case "small":
			h.Size, body = 3, []byte("abc")
		case "again":
			body = text(20) // the very same
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	w.Close()

	objects := openStore(t, t.TempDir())
	var hidden []tree.Digest
	var recipe bytes.Buffer
	root, err := layer.Read(t.Context(), layer.Config{
		Objects: begin(t, objects), InlineLimit: layer.InlineLimit, Recipe: &recipe, Hidden: &hidden,
	}, bytes.NewReader(packed.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	var want []tree.Digest
	for _, i := range []int{0, 2, 3} { // linked has another name
		want = append(want, sha256.Sum256(text(i)))
	}
	slices.SortFunc(want, tree.Digest.Compare)
	if !slices.Equal(hidden, want) {
		t.Errorf("hidden are %x, want %x", hidden, want)
	}
	all := slices.Concat(hidden, tree.Objects(root))
	var again bytes.Buffer
	err = layer.Write(t.Context(), &recipe, func(d tree.Digest) (io.ReadCloser, error) {
		if !slices.Contains(all, d) {
			return nil, fmt.Errorf("nobody would keep body %x", d)
		}
		return objects.Open(d)
	}, &again)
	if err != nil || !bytes.Equal(again.Bytes(), packed.Bytes()) {
		t.Errorf("the tar has %d bytes of %d, %v", again.Len(), packed.Len(), err)
	}
}
