package lcfs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"berth/node/snapshot"
	"berth/node/snapshot/lcfs"
)

// du adds up what is in dir but for the records, as du does.
func du(t testing.TB, dir string) (total int64) {
	t.Helper()
	seen := map[uint64]bool{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) || path == filepath.Join(dir, "db") {
			return nil
		}
		if d.IsDir() && filepath.Dir(path) == filepath.Join(dir, "mnt") {
			return fs.SkipDir // another file system
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if !seen[st.Ino] {
			seen[st.Ino] = true
			total += st.Blocks * 512
		}
		return nil
	}))
	return total
}

// noise is a body that no other seed has.
func noise(seed, size int) []byte {
	body := make([]byte, 0, size+32)
	for sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(seed))); len(body) < size; sum = sha256.Sum256(sum[:]) {
		body = append(body, sum[:]...)
	}
	return body[:size]
}

func agrees(t testing.TB, s opened, dir string) snapshot.Totals {
	t.Helper()
	must(t, s.Sync(t.Context())) // file systems give out blocks when they write
	_, totals, err := s.Shares(t.Context(), nil)
	must(t, err)
	got, want := totals.Objects+totals.Metadata+totals.Layers+totals.Uppers, du(t, dir)
	if diff := got - want; diff > want/50 || diff < -want/50 {
		t.Errorf("totals are %+v, %d bytes; du says %d", totals, got, want)
	}
	return totals
}

// TestShares: what groups own and share adds up, in every state of a store.
func TestShares(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, func(c *lcfs.Config) { c.Quiet = time.Hour })
	const size = 64 << 10
	body := func(n int) string { return string(noise(n, size)) }
	layer(t, s, "base", "", map[string]string{"a": body(1), "b": body(2), "small": "s"})
	layer(t, s, "one", "base", map[string]string{"c": body(3), "own": body(4)})
	layer(t, s, "two", "base", map[string]string{"c": body(3), "sub/own": body(5), "sub/own2": body(6)})
	layer(t, s, "alone", "", map[string]string{"x": body(7)})
	must(t, s.Settle(t.Context(), "one"))
	must(t, s.Sync(t.Context()))

	shares := func(groups map[string][]snapshot.Key) map[string]snapshot.Share {
		t.Helper()
		shares, _, err := s.Shares(t.Context(), groups)
		must(t, err)
		if len(shares) != len(groups) {
			t.Errorf("%d groups have shares %v", len(groups), shares)
		}
		return shares
	}
	near := func(what string, got int64, bodies int) {
		t.Helper()
		if want := int64(bodies * size); got < want || got > want+60_000 { // with their metadata
			t.Errorf("%s is %d, want the %d bytes of %d bodies and a little more", what, got, want, bodies)
		}
	}
	got := shares(map[string][]snapshot.Key{"one": {"one"}, "two": {"two"}, "none": {"none"}})
	near("own of one", got["one"].Own, 1)
	near("own of two", got["two"].Own, 2)
	near("shared of one", got["one"].Shared, 3)
	near("shared of two", got["two"].Shared, 3)
	if got["none"] != (snapshot.Share{}) {
		t.Errorf("what is not there takes %v", got["none"])
	}
	got = shares(map[string][]snapshot.Key{"both": {"one", "two"}, "alone": {"alone"}, "low": {"base"}})
	near("own of both", got["both"].Own, 4)
	near("shared of both", got["both"].Shared, 2)
	near("own of what the others have too", got["low"].Own, 0)
	near("own of alone", got["alone"].Own, 1)
	if totals := agrees(t, s, dir); totals.ObjectCount != 7 {
		t.Errorf("%d objects", totals.ObjectCount)
	}

	// A container's own, then as a layer that is a folder, then settled.
	_, err := s.Prepare(t.Context(), "work", "one", nil)
	must(t, err)
	change(t, s, "work", func(root string) {
		for i := range 10 {
			must(t, os.WriteFile(filepath.Join(root, fmt.Sprint(i)), noise(100+i, size), 0o644))
		}
		must(t, os.Link(filepath.Join(root, "1"), filepath.Join(root, "link")))
	})
	if totals := agrees(t, s, dir); totals.Uppers < 10*size || totals.Layers > 20_000 {
		t.Errorf("with a container totals are %+v", totals)
	}
	_, err = s.Commit(t.Context(), "top", "work", nil)
	must(t, err)
	near("own of a layer that is a folder", shares(map[string][]snapshot.Key{"top": {"top"}, "one": {"one"}})["top"].Own, 10)
	if totals := agrees(t, s, dir); totals.Layers < 10*size || totals.Uppers != 0 {
		t.Errorf("with a layer that is a folder totals are %+v", totals)
	}
	must(t, s.Settle(t.Context(), "top"))
	near("own of a layer that was a folder", shares(map[string][]snapshot.Key{"top": {"top"}, "one": {"one"}})["top"].Own, 10)
	if totals := agrees(t, s, dir); totals.ObjectCount != 17 || totals.Layers > 100_000 {
		t.Errorf("with a settled layer totals are %+v", totals)
	}
	must(t, s.Close())

	s = open(t, dir)
	eventually(t, "the folder is gone", func() bool { return len(names(t, filepath.Join(dir, "layers"))) == 0 })
	agrees(t, s, dir)
	must(t, s.Close())
}

// TestSharesAreGivenBack: own is what comes back when a group is removed.
func TestSharesAreGivenBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i, name := range []snapshot.Key{"one", "two", "three"} {
		files := map[string]string{}
		for j := range 60 {
			files[fmt.Sprint("d/", j)] = string(noise(j+i*20, 5000+j*100))
		}
		layer(t, s, name, "", files)
	}
	must(t, s.Sync(t.Context()))
	groups := map[string][]snapshot.Key{"one": {"one"}, "two": {"two"}, "three": {"three"}}
	shares, before, err := s.Shares(t.Context(), groups)
	must(t, err)
	must(t, s.Remove(t.Context(), "two"))
	eventually(t, "only what is named is left", func() bool { return leftOver(t, s, dir) == "" })
	_, after, err := s.Shares(t.Context(), nil)
	must(t, err)
	freed := before.Objects + before.Metadata - after.Objects - after.Metadata
	if own := shares["two"].Own; own != freed {
		t.Errorf("own was %d, %d came back", own, freed)
	}
	must(t, s.Close())
}

// imageTar is a layer of files, each of two bodies by whether it is among the
// first of a thousand.
func imageTar(w io.Writer, image, files, perMille int) error {
	tw := tar.NewWriter(w)
	for i := range files {
		seed := i
		if i%1000 < perMille {
			seed = i + (image+1)*1_000_000
		}
		body := noise(seed, 600+seed%400)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", i%100, i), Size: int64(len(body)), Mode: 0o644}); err != nil {
			return err
		}
		if _, err := tw.Write(body); err != nil {
			return err
		}
	}
	return tw.Close()
}

func ingestImage(t testing.TB, s snapshot.Store, name snapshot.Key, image, files, perMille int) {
	t.Helper()
	var buf bytes.Buffer
	must(t, imageTar(&buf, image, files, perMille))
	in, err := s.Ingest(t.Context(), &buf)
	must(t, err)
	_, err = in.Commit(t.Context(), name, "", nil)
	must(t, err)
}

// BenchmarkShares counts 50 images of 20,000 files, of which they share nine
// of ten.
func BenchmarkShares(b *testing.B) {
	dir := benchDir(b)
	s := openAsIs(b, dir)
	groups := map[string][]snapshot.Key{}
	for i := range 50 {
		key := snapshot.Key(fmt.Sprint("image", i))
		ingestImage(b, s, key, i, 20_000, 100)
		groups[string(key)] = []snapshot.Key{key}
	}
	must(b, s.Sync(b.Context()))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		_, _, err := s.Shares(b.Context(), groups)
		must(b, err)
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/(1<<20), "MiB/op")
	agrees(b, s, dir)
	must(b, s.Close())
}
