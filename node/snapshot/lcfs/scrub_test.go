package lcfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/base/errs"
	"berth/node/snapshot"
)

func unpaced(ctx context.Context, _ int64) error { return ctx.Err() }

// scrub returns all that a scrub looked at, and what of it was damaged.
func scrub(t testing.TB, s snapshot.Store) (all, damaged []snapshot.Checked) {
	t.Helper()
	must(t, s.(interface {
		Scrub(context.Context, string, func(context.Context, int64) error, func(snapshot.Checked) error) error
	}).Scrub(t.Context(), "", unpaced, func(c snapshot.Checked) error {
		if len(all) > 0 && c.Place <= all[len(all)-1].Place {
			t.Errorf("place %s is behind %s", c.Place, all[len(all)-1].Place)
		}
		all = append(all, c)
		if c.Damage != "" {
			damaged = append(damaged, c)
		}
		return nil
	}))
	return all, damaged
}

// flip flips a bit in the middle of a file.
func flip(t testing.TB, path string) {
	t.Helper()
	var f *os.File
	eventually(t, "nobody is just sealing "+path, func() bool {
		unsealed(t, path)
		var err error
		f, err = os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, unix.ETXTBSY) {
			return false
		}
		must(t, err)
		return true
	})
	info, err := f.Stat()
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, info.Size()/2)
	must(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b, info.Size()/2)
	must(t, err)
	must(t, f.Close())
}

// unsealed puts a copy in the place of a file that the kernel keeps from being
// damaged.
func unsealed(t testing.TB, path string) {
	t.Helper()
	if !isSealed(t, path) {
		return
	}
	body, err := os.ReadFile(path)
	must(t, err)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, body, 0o600))
}

// scrubbed is a store with a chain of two ingested layers and one that a
// container left, the tars of all three, and what their mount shows.
type scrubbed struct {
	opened
	dir  string
	tars map[snapshot.Key][]byte
	want []string
}

var (
	lowBody  = strings.Repeat("the low layer ", 900)
	highBody = strings.Repeat("the high layer ", 80_000) // more than a block
	bothBody = strings.Repeat("in both layers ", 700)
	ownBody  = strings.Repeat("of the container ", 500)
)

func newScrubbed(t *testing.T) *scrubbed {
	t.Helper()
	dir := t.TempDir()
	x := &scrubbed{opened: open(t, dir), dir: dir, tars: map[snapshot.Key][]byte{}}
	t.Cleanup(func() { must(t, x.Close()) })
	for i, files := range []map[string]string{
		{"low": lowBody, "both": bothBody, "small": "small body", "dir/deep/file": "another"},
		{"high": highBody, "dir/deep/copy": bothBody, "dir/deep/more": "tiny"},
	} {
		key, parent := snapshot.Key("low"), snapshot.Key("")
		if i == 1 {
			key, parent = "high", "low"
		}
		packed := pack(t, files)
		raw := make([]byte, packed.Len())
		_, _ = packed.Read(raw)
		in, err := x.Ingest(t.Context(), bytes.NewReader(raw))
		must(t, err)
		_, err = in.Commit(t.Context(), key, parent, nil)
		must(t, err)
		x.tars[key] = raw
	}
	_, err := x.Prepare(t.Context(), "work", "high", nil)
	must(t, err)
	change(t, x, "work", func(root string) {
		must(t, os.WriteFile(filepath.Join(root, "own"), []byte(ownBody), 0o600))
		at := time.Unix(1_700_000_000, 0)
		must(t, os.Chtimes(filepath.Join(root, "own"), at, at))
		must(t, os.Remove(filepath.Join(root, "small")))
	})
	_, err = x.Commit(t.Context(), "own", "work", nil)
	must(t, err)
	x.settled(t)
	x.tars["own"] = []byte(diff(t, x, "own"))
	x.want = read(t, x, "own")
	return x
}

// settled waits until there are images and objects and no more.
func (x *scrubbed) settled(t *testing.T) {
	t.Helper()
	must(t, x.Settle(t.Context(), "own"))
	must(t, x.Sync(t.Context()))
	eventually(t, "the folders are gone", func() bool { return len(names(t, filepath.Join(x.dir, "layers"))) == 0 })
	eventually(t, "only what is named is left", func() bool { return leftOver(t, x.opened, x.dir) == "" })
}

func (x *scrubbed) record(t *testing.T, key snapshot.Key) kept {
	t.Helper()
	for _, rec := range records(t, x.opened) {
		if rec.Key == key {
			return rec
		}
	}
	t.Fatalf("no record of %s", key)
	return kept{}
}

func (x *scrubbed) image(name string) string { return filepath.Join(x.dir, "meta", name+".erofs") }

func (x *scrubbed) object(t *testing.T, body string) string {
	t.Helper()
	for _, path := range objects(t, x.dir) {
		if got, err := os.ReadFile(path); err == nil && string(got) == body {
			return path
		}
	}
	t.Fatalf("no object of %.20q", body)
	return ""
}

// heal heals all that is damaged as those who scrub do, and expects a clean
// scrub and the right tree after it.
func (x *scrubbed) heal(t *testing.T, damaged []snapshot.Checked) {
	t.Helper()
	for _, c := range damaged {
		if c.Healed != "" {
			continue
		}
		must(t, x.Heal(t.Context(), c.Keys[0], bytes.NewReader(x.tars[c.Keys[0]])))
	}
	eventually(t, "a clean scrub", func() bool { _, damaged := scrub(t, x); return len(damaged) == 0 })
	if _, damaged := scrub(t, x); len(damaged) > 0 {
		t.Errorf("after healing there is %+v", damaged)
	}
	if got := read(t, x, "own"); !slices.Equal(got, x.want) {
		t.Errorf("after healing the tree is\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(x.want, "\n"))
	}
	for key, want := range x.tars {
		var got bytes.Buffer
		if err := x.Tar(t.Context(), key, &got); errors.Is(err, errs.Unsupported) {
			must(t, x.Diff(t.Context(), key, &got))
		} else {
			must(t, err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("after healing the tar of %s is another", key)
		}
	}
	// Once is enough: images that are put to rest again have files in the making.
	left := ""
	eventually(t, "only what is named is left", func() bool { left = leftOver(t, x.opened, x.dir); return left == "" })
	if left != "" {
		t.Error(left)
	}
}

func TestScrubOfWhatIsWhole(t *testing.T) {
	x := newScrubbed(t)
	all, damaged := scrub(t, x)
	if len(damaged) > 0 {
		t.Errorf("found %+v", damaged)
	}
	count := map[snapshot.Part]int{}
	read := int64(0)
	for _, c := range all {
		count[c.Part]++
		read += c.Size
	}
	want := map[snapshot.Part]int{snapshot.PartObject: 4}
	for _, rec := range records(t, x.opened) {
		for _, there := range []bool{rec.Delta != "", rec.Merged != "", rec.Recipe} {
			if there {
				want[snapshot.PartMetadata]++
			}
		}
	}
	if !maps.Equal(count, want) || count[snapshot.PartMetadata] < 6 {
		t.Errorf("looked at %v, want %v", count, want)
	}
	if want := int64(len(lowBody) + len(highBody) + len(bothBody) + len(ownBody)); read < want {
		t.Errorf("read %d bytes of more than %d", read, want)
	}
}

// TestScrubFinds: each kind of damage is found, exactly it, with the layers
// that it touches; and it is healed.
func TestScrubFinds(t *testing.T) {
	type found struct {
		part snapshot.Part
		keys string
	}
	flipObject := func(body string) func(*testing.T, *scrubbed) {
		return func(t *testing.T, x *scrubbed) { flip(t, x.object(t, body)) }
	}
	for name, test := range map[string]struct {
		damage func(*testing.T, *scrubbed)
		want   []found
	}{
		"Object":       {flipObject(lowBody), []found{{snapshot.PartObject, "[low]"}}},
		"BigObject":    {flipObject(highBody), []found{{snapshot.PartObject, "[high]"}}},
		"SharedObject": {flipObject(bothBody), []found{{snapshot.PartObject, "[high low]"}}},
		"OwnObject":    {flipObject(ownBody), []found{{snapshot.PartObject, "[own]"}}},
		"CachedObject": {func(t *testing.T, x *scrubbed) {
			_, err := x.View(t.Context(), "cache", "own", nil)
			must(t, err)
			target := t.TempDir()
			must(t, x.Mount(t.Context(), "cache", target))
			t.Cleanup(func() {
				must(t, x.Unmount(context.WithoutCancel(t.Context()), target))
			})
			body, err := os.ReadFile(filepath.Join(target, "low"))
			must(t, err)
			if string(body) != lowBody {
				t.Error("the mount shows another body")
			}
			flip(t, x.object(t, lowBody))
		}, []found{{snapshot.PartObject, "[low]"}}},
		"MissingObject": {func(t *testing.T, x *scrubbed) { must(t, os.Remove(x.object(t, highBody))) }, []found{{snapshot.PartObject, "[high]"}}},
		"ShortObject": {func(t *testing.T, x *scrubbed) {
			object := x.object(t, bothBody)
			unsealed(t, object)
			must(t, os.Truncate(object, 100))
		}, []found{{snapshot.PartObject, "[high low]"}}},
		"Delta":        {func(t *testing.T, x *scrubbed) { flip(t, x.image(x.record(t, "high").Delta)) }, []found{{snapshot.PartMetadata, "[high]"}}},
		"BottomDelta":  {func(t *testing.T, x *scrubbed) { flip(t, x.image(x.record(t, "low").Delta)) }, []found{{snapshot.PartMetadata, "[low]"}}},
		"OwnDelta":     {func(t *testing.T, x *scrubbed) { flip(t, x.image(x.record(t, "own").Delta)) }, []found{{snapshot.PartMetadata, "[own]"}}},
		"MissingDelta": {func(t *testing.T, x *scrubbed) { must(t, os.Remove(x.image(x.record(t, "high").Delta))) }, []found{{snapshot.PartMetadata, "[high]"}}},
		"Merged":       {func(t *testing.T, x *scrubbed) { flip(t, x.image(x.record(t, "own").Merged)) }, []found{{snapshot.PartMetadata, "[own]"}}},
		"Recipe":       {func(t *testing.T, x *scrubbed) { flip(t, filepath.Join(x.dir, "recipes", x.record(t, "high").ID)) }, []found{{snapshot.PartLayer, "[high]"}}},
		"MissingRecipe": {func(t *testing.T, x *scrubbed) {
			must(t, os.Remove(filepath.Join(x.dir, "recipes", x.record(t, "low").ID)))
		}, []found{{snapshot.PartLayer, "[low]"}}},
		"ListOfObjects": {func(t *testing.T, x *scrubbed) {
			flip(t, filepath.Join(x.dir, "meta", x.record(t, "low").Delta+".objs"))
		}, nil}, // it is made again of the image
		"LostList": {func(t *testing.T, x *scrubbed) {
			must(t, os.Remove(filepath.Join(x.dir, "meta", x.record(t, "low").Delta+".objs")))
		}, nil},
		"Several": {func(t *testing.T, x *scrubbed) {
			flip(t, x.object(t, lowBody))
			must(t, os.Remove(x.object(t, bothBody)))
			flip(t, x.image(x.record(t, "low").Delta))
			flip(t, x.image(x.record(t, "high").Delta))
			flip(t, x.image(x.record(t, "own").Merged))
			flip(t, filepath.Join(x.dir, "recipes", x.record(t, "low").ID))
		}, []found{
			{snapshot.PartMetadata, "[low]"},
			{snapshot.PartMetadata, "[high]"},
			{snapshot.PartMetadata, "[own]"},
			{snapshot.PartLayer, "[low]"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newScrubbed(t)
			test.damage(t, x)
			_, damaged := scrub(t, x)
			var got []found
			for _, c := range damaged {
				if name == "Several" && c.Part == snapshot.PartObject {
					continue // in the order of digests
				}
				got = append(got, found{c.Part, fmt.Sprint(c.Keys)})
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("found %+v, want %v", damaged, test.want)
			}
			if name == "Several" && len(damaged) != 6 {
				t.Errorf("found %+v", damaged)
			}
			x.heal(t, damaged)
		})
	}
}

// TestScrubGoesOn: a scrub that ended somewhere goes on behind that, also in
// another process.
func TestScrubGoesOn(t *testing.T) {
	x := newScrubbed(t)
	whole, _ := scrub(t, x)
	enough := errors.New("enough")
	var got []string
	place := ""
	for {
		err := x.Scrub(t.Context(), place, unpaced, func(c snapshot.Checked) error {
			got, place = append(got, c.Name), c.Place
			return enough
		})
		if err == nil {
			break
		}
		if !errors.Is(err, enough) {
			t.Fatal(err)
		}
		if len(got) == 4 {
			must(t, x.Close())
			x.opened = open(t, x.dir)
		}
	}
	var want []string
	for _, c := range whole {
		want = append(want, c.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("in pieces it looked at %q, at once at %q", got, want)
	}
}

// TestScrubIsPaced: nothing is read before that is granted, and a refusal ends
// the scrub.
func TestScrubIsPaced(t *testing.T) {
	x := newScrubbed(t)
	granted, read := int64(0), int64(0)
	must(t, x.Scrub(t.Context(), "", func(_ context.Context, bytes int64) error {
		granted += bytes
		if bytes > 1<<20 {
			t.Errorf("asked for %d bytes at once", bytes)
		}
		return nil
	}, func(c snapshot.Checked) error {
		if read += c.Size; read > granted {
			t.Errorf("%d bytes were read, %d granted", read, granted)
		}
		return nil
	}))
	if read != granted {
		t.Errorf("%d bytes were read, %d granted", read, granted)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := x.Scrub(ctx, "", func(ctx context.Context, _ int64) error { cancel(); return ctx.Err() }, func(snapshot.Checked) error {
		t.Error("something was read")
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a scrub that was canceled: %v", err)
	}
}

// TestScrubSweepsStrays: an object that nothing names goes.
func TestScrubSweepsStrays(t *testing.T) {
	x := newScrubbed(t)
	stray := filepath.Join(filepath.Dir(x.object(t, lowBody)), strings.Repeat("cd", 31))
	must(t, os.WriteFile(stray, []byte("stray"), 0o600))
	if _, damaged := scrub(t, x); len(damaged) > 0 {
		t.Errorf("found %+v", damaged)
	}
	eventually(t, "the stray is gone", func() bool { _, err := os.Stat(stray); return os.IsNotExist(err) })
	x.heal(t, nil)
}

// TestHealRefuses: a layer is not healed from another tar.
func TestHealRefuses(t *testing.T) {
	x := newScrubbed(t)
	image, recipe := x.image(x.record(t, "high").Delta), filepath.Join(x.dir, "recipes", x.record(t, "high").ID)
	for _, file := range []string{"", image, recipe, x.object(t, highBody)} {
		if file != "" {
			flip(t, file)
		}
		err := x.Heal(t.Context(), "high", bytes.NewReader(x.tars["low"]))
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("healed %s from another layer's tar: %v", filepath.Base(file), err)
		}
		if err := x.Heal(t.Context(), "high", strings.NewReader("no tar")); !errors.Is(err, errs.Invalid) {
			t.Errorf("healed %s from no tar: %v", filepath.Base(file), err)
		}
		if err := x.Heal(t.Context(), "high", bytes.NewReader(x.tars["high"][:len(x.tars["high"])/2])); !errors.Is(err, errs.Invalid) {
			t.Errorf("healed %s from half a tar: %v", filepath.Base(file), err)
		}
		must(t, x.Heal(t.Context(), "high", bytes.NewReader(x.tars["high"])))
		x.heal(t, nil)
	}
	if err := x.Heal(t.Context(), "none", bytes.NewReader(x.tars["high"])); !errors.Is(err, errs.NotFound) {
		t.Errorf("healed what is not there: %v", err)
	}
}

// TestScrubBesideWork: while layers come, settle and go, a scrub finds no
// damage, and nobody waits for it.
func TestScrubBesideWork(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for {
			err := s.Scrub(ctx, "", unpaced, func(c snapshot.Checked) error {
				if c.Damage != "" {
					t.Errorf("found %+v", c)
				}
				return nil
			})
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for round := range 12 {
		low, high := snapshot.Key(fmt.Sprint("low", round)), snapshot.Key(fmt.Sprint("high", round))
		files := map[string]string{"same": strings.Repeat("s", 9000)}
		for i := range 40 {
			files[fmt.Sprint("f", i)] = strings.Repeat(fmt.Sprint(i%7, round%3), 2000+i)
		}
		layer(t, s, low, "", files)
		_, err := s.Prepare(t.Context(), "work", low, nil)
		must(t, err)
		change(t, s, "work", func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "new"), []byte(strings.Repeat(fmt.Sprint(round), 3000)), 0o644))
		})
		_, err = s.Commit(t.Context(), high, "work", nil)
		must(t, err)
		must(t, s.Settle(t.Context(), high))
		if round%2 == 1 {
			must(t, s.Remove(t.Context(), high))
			must(t, s.Remove(t.Context(), low))
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the scrub ended with %v", err)
	}
	if _, damaged := scrub(t, s); len(damaged) > 0 {
		t.Errorf("found %+v", damaged)
	}
	must(t, s.Close())
}

// BenchmarkScrub reads an image of 20,000 files.
func BenchmarkScrub(b *testing.B) {
	s := openAsIs(b, benchDir(b))
	ingestImage(b, s, "image", 0, 20_000, 0)
	must(b, s.Sync(b.Context()))
	before := cpuTime()
	for b.Loop() {
		read := int64(0)
		must(b, s.Scrub(b.Context(), "", unpaced, func(c snapshot.Checked) error { read += c.Size; return nil }))
		b.SetBytes(read)
	}
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-us")
	must(b, s.Close())
}

// TestScrubOfWhatIsMissing: bodies that a layer is known to lack are no
// damage; healing brings them.
func TestScrubOfWhatIsMissing(t *testing.T) {
	from := newScrubbed(t)
	delta, err := from.Delta(t.Context(), "low")
	must(t, err)
	recipe, _, err := from.Recipe(t.Context(), "low")
	must(t, err)
	defer recipe.Close()
	dir := t.TempDir()
	s := open(t, dir)
	if !s.Missing(func(context.Context) (int, error) { return -1, errors.ErrUnsupported }) {
		t.Skip("needs a kernel that mounts layers whose bodies are missing")
	}
	in, err := s.IngestKnown(t.Context(), delta, recipe)
	must(t, err)
	_, err = in.Commit(t.Context(), "low", "", map[string]string{snapshot.Missing: "yes"})
	must(t, err)
	if all, damaged := scrub(t, s); len(damaged) > 0 || len(all) != 2 {
		t.Errorf("looked at %+v, found %+v", all, damaged)
	}
	must(t, s.Heal(t.Context(), "low", bytes.NewReader(from.tars["low"])))
	must(t, s.Whole(t.Context(), "low"))
	if all, damaged := scrub(t, s); len(damaged) > 0 || len(all) != 4 {
		t.Errorf("looked at %+v, found %+v", all, damaged)
	}
	if got := read(t, s, "low"); len(got) != 7 {
		t.Errorf("the tree is %q", got)
	}
	must(t, s.Close())
}
