package lcfs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

// packInOrder makes a tar of folders (names that end in /) and files.
func packInOrder(t testing.TB, entries ...string) *bytes.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, entry := range entries {
		name, body, _ := strings.Cut(entry, "=")
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644}
		if strings.HasSuffix(name, "/") {
			header.Typeflag, header.Mode = tar.TypeDir, 0o755
		}
		must(t, w.WriteHeader(header))
		_, err := w.Write([]byte(body))
		must(t, err)
	}
	must(t, w.Close())
	return bytes.NewReader(buf.Bytes())
}

func ingest(t testing.TB, s snapshot.Store, name, parent snapshot.Key, entries ...string) {
	t.Helper()
	in, err := s.Ingest(t.Context(), packInOrder(t, entries...))
	must(t, err)
	_, err = in.Commit(t.Context(), name, parent, nil)
	must(t, err)
}

// TestNoGhosts: what a layer deletes although it is not there is not listed,
// be the layer at the bottom or above others, mounted alone or merged.
func TestNoGhosts(t *testing.T) {
	for way, how := range ways() {
		t.Run(way, func(t *testing.T) {
			s := open(t, t.TempDir(), how, func(c *lcfs.Config) { c.Quiet = time.Hour })
			ingest(t, s, "bottom", "", ".wh.root", "d/", "d/.wh.ghost", "d/f=x", "o/", "o/.wh..wh..opq", "o/.wh.ghost", "o/f=x")
			ingest(t, s, "middle", "bottom", "new/", "new/.wh.ghost", "new/f=y", "d/.wh.other", "d/g=y")
			ingest(t, s, "opaque", "middle", ".wh..wh..opq", "p/", "p/.wh.ghost", "p/f=z", ".wh.d")
			ingest(t, s, "top", "opaque", "p/.wh.f", "q/.wh.ghost", "q/f=w")
			for key, want := range map[snapshot.Key]string{
				"bottom": "d d/f o o/f", "middle": "d d/f d/g new new/f o o/f", "opaque": "p p/f", "top": "p q q/f",
			} {
				_, err := s.Prepare(t.Context(), "look", key, nil)
				must(t, err)
				change(t, s, "look", func(root string) {
					if got := strings.Join(paths(t, root), " "); got != want {
						t.Errorf("%s shows %q, want %q", key, got, want)
					}
				})
				must(t, s.Remove(t.Context(), "look"))
			}
			must(t, s.Close())
		})
	}
}

func paths(t testing.TB, root string) (found []string) {
	t.Helper()
	for _, line := range list(t, root)[1:] {
		path, _, _ := strings.Cut(line, " ")
		found = append(found, path[1:])
	}
	slices.Sort(found)
	return found
}

// TestPlantedObject: a layer that has a file under the name that an object has
// does not thereby give its body to files of layers above it.
func TestPlantedObject(t *testing.T) {
	body := strings.Repeat("genuine ", 1000)
	sum := sha256.Sum256([]byte(body))
	name := hex.EncodeToString(sum[:1]) + "/" + hex.EncodeToString(sum[1:])
	planted := name + "=" + strings.Repeat("planted!", 1000)
	for way, how := range ways() {
		t.Run(way, func(t *testing.T) {
			s := open(t, t.TempDir(), how, func(c *lcfs.Config) { c.Quiet = time.Hour })
			folder := name[:3]
			ingest(t, s, "evil", "", folder, planted)
			ingest(t, s, "plain", "", "e=e")
			_, err := s.Prepare(t.Context(), "work", "plain", nil)
			must(t, err)
			change(t, s, "work", func(root string) {
				must(t, os.Mkdir(filepath.Join(root, folder), 0o755))
				must(t, os.WriteFile(filepath.Join(root, name), []byte(strings.Repeat("planted!", 1000)), 0o644))
			})
			_, err = s.Commit(t.Context(), "folder", "work", nil)
			must(t, err)
			for _, below := range []snapshot.Key{"evil", "folder"} {
				good := "good-" + below
				ingest(t, s, good, below, "bin/", "bin/tool="+body)
				ingest(t, s, "more-"+good, good, "x=y")
				for _, key := range []snapshot.Key{good, "more-" + good} {
					look := "look-" + key
					_, err := s.Prepare(t.Context(), look, key, nil)
					must(t, err)
					change(t, s, look, func(root string) {
						if got, err := os.ReadFile(filepath.Join(root, "bin/tool")); err != nil || string(got) != body {
							t.Errorf("on %s the file is %.16q, %v", key, got, err)
						}
						if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got[:8]) != "planted!" {
							t.Errorf("on %s the planted file is %.16q, %v", key, got, err)
						}
					})
				}
			}
			must(t, s.Close())
		})
	}
}

// TestIngestOnFolder: a layer that is ingested on one that is still a folder,
// and leans on its folders, does not lose that one's bodies.
func TestIngestOnFolder(t *testing.T) {
	for way, how := range ways() {
		t.Run(way, func(t *testing.T) {
			s := open(t, t.TempDir(), how, func(c *lcfs.Config) { c.Quiet = time.Hour })
			ingest(t, s, "low", "", "d/", "d/e=e")
			_, err := s.Prepare(t.Context(), "work", "low", nil)
			must(t, err)
			body := strings.Repeat("of the folder ", 1000)
			change(t, s, "work", func(root string) {
				must(t, os.WriteFile(filepath.Join(root, "d/own"), []byte(body), 0o644))
			})
			_, err = s.Commit(t.Context(), "folder", "work", nil)
			must(t, err)
			ingest(t, s, "top", "folder", "d/tool=x", "d/.wh.e")
			for range 2 {
				if got := strings.Join(read(t, s, "top"), "\n"); !strings.Contains(got, "/d/own -rw-r--r-- 0 "+body[:20]) || strings.Contains(got, "/d/e ") {
					t.Errorf("the tree is\n%s", got)
				}
				must(t, s.Settle(t.Context(), "top"))
			}
			must(t, s.Close())
		})
	}
}
