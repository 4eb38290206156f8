package copy_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/node/snapshot"
	"berth/node/snapshot/copy"
)

// BenchmarkPrepare clones an image of 10 layers and 10,000 files of 8 KiB: the
// first time, when the image's tree is made, and after.
func BenchmarkPrepare(b *testing.B) {
	body := strings.Repeat("0123456789abcdef", 512)
	var tars [][]byte
	for l := range 10 {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for i := range 1000 {
			must(b, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/d%d/f%d-%d", i/20, l, i), Size: int64(len(body)), Mode: 0o644, ModTime: moment}))
			_, err := w.Write([]byte(body))
			must(b, err)
		}
		must(b, w.Close())
		tars = append(tars, buf.Bytes())
	}
	for _, rung := range []struct {
		method copy.Method
		mkfs   []string
	}{
		{copy.Btrfs, []string{"mkfs.btrfs", "-q"}}, {copy.Reflink, []string{"mkfs.xfs", "-q", "-m", "reflink=1"}}, {copy.Copy, []string{"mkfs.ext4", "-q"}},
	} {
		b.Run(string(rung.method), func(b *testing.B) {
			s := open(b, disk(b, rung.mkfs...), rung.method)
			var parent snapshot.Key
			for i, t := range tars {
				in, err := s.Ingest(b.Context(), bytes.NewReader(t))
				must(b, err)
				name := snapshot.Key(fmt.Sprint("layer", i))
				_, err = in.Commit(b.Context(), name, parent, nil)
				must(b, err)
				parent = name
			}
			start := time.Now()
			prepare(b, s, "first", parent, nil)
			first := time.Since(start)
			b.ResetTimer()
			for i := range b.N {
				prepare(b, s, snapshot.Key(fmt.Sprint("work", i)), parent, nil)
			}
			b.StopTimer()
			b.ReportMetric(float64(first.Microseconds())/1000, "first-ms")
			start = time.Now()
			changes, err := s.Changes(b.Context(), "first")
			must(b, err)
			if len(changes) != 0 {
				b.Errorf("a clone has %d changes", len(changes))
			}
			b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "changes-ms")
			must(b, s.Close())
		})
	}
}
