package image_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/base/errs"
	"berth/image/registrytest"
	"berth/node/image"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
	"berth/spec"
)

// scrub runs a scrub and returns what it found.
func (n *node) scrub(req spec.ScrubRequest) (spec.ScrubResult, []spec.Damage) {
	n.Helper()
	var found []spec.Damage
	result, err := n.set.Scrub(n.Context(), req, func(p spec.ScrubProgress) {
		if p.Damage != nil {
			found = append(found, *p.Damage)
		}
	})
	n.must(err)
	if result.Damaged != len(found) || result.Ended.Before(result.Started) {
		n.Errorf("result %+v of %d damaged parts", result, len(found))
	}
	return result, found
}

// flip changes one byte of a blob on disk.
func (n *node) flip(d digest.Digest) {
	n.Helper()
	path := filepath.Join(n.dir, "blobs", "sha256", d.Encoded())
	body, err := os.ReadFile(path)
	n.must(err)
	body[len(body)/2] ^= 1
	n.must(os.WriteFile(path, body, 0o600))
}

func (n *node) keysOf(i spec.Image) []snapshot.Key {
	n.Helper()
	top, err := n.set.Chain(n.Context(), i.ID)
	n.must(err)
	var keys []snapshot.Key
	for top != "" {
		info, err := n.snapshots.Stat(n.Context(), top)
		n.must(err)
		keys = append(keys, top)
		top = info.Parent
	}
	slices.Reverse(keys)
	return keys
}

// A node with two images that share a layer, and what a scrub looks at.
func scrubbed(t *testing.T, options ...func(*node)) (n *node, r *registrytest.Registry, one registrytest.Image, a, b spec.Image) {
	n, r = newNode(t, append([]func(*node){offers}, options...)...), registrytest.New(t)
	one, two := sample(t)
	r.Push(t, "one", "v1", one)
	r.Push(t, "two", "v1", two)
	a, b = n.pull(r.Host()+"/one:v1"), n.pull(r.Host()+"/two:v1")
	for _, key := range append(n.keysOf(a), n.keysOf(b)[1]) {
		n.offering().keeps(key, 5)
	}
	return n, r, one, a, b
}

func TestScrubOfWhatIsWhole(t *testing.T) {
	n, r, _, _, _ := scrubbed(t)
	before := len(r.Requests("", ""))
	var last spec.ScrubProgress
	result, err := n.set.Scrub(t.Context(), spec.ScrubRequest{}, func(p spec.ScrubProgress) { last = p })
	n.must(err)
	if result.Damaged != 0 || result.Checked != 8+20 || result.Bytes < 20_000 || result.Note != "" {
		t.Errorf("%+v", result)
	}
	if last.Bytes > last.Total || last.Checked == 0 {
		t.Errorf("progress %+v", last)
	}
	if got := len(r.Requests("", "")); got != before {
		t.Error("the registry was asked")
	}
	if kept := n.set.LastScrub(); kept == nil || kept.Checked != result.Checked {
		t.Errorf("remembered %+v", kept)
	}
	n.restart()
	if kept := n.set.LastScrub(); kept == nil || !kept.Started.Equal(result.Started) {
		t.Errorf("after a restart %+v", kept)
	}
	if parts, bytes := n.set.ScrubRead(); parts != 0 || bytes != 0 {
		t.Errorf("a new node has read %d, %d", parts, bytes)
	}
}

// Damage names the images that it touches, and is repaired from the blob.
func TestScrubHealsLayers(t *testing.T) {
	n, r, one, a, _ := scrubbed(t)
	keys := n.keysOf(a)
	n.offering().breaks(keys[0], 1)
	n.offering().breaks(keys[0], 3)
	n.offering().breaks(keys[1], 0)
	both := []string{r.Host() + "/one:v1", r.Host() + "/two:v1"}

	result, found := n.scrub(spec.ScrubRequest{NoRepair: true})
	if result.Repaired != 0 || len(found) != 3 || n.offering().damage() != 3 {
		t.Fatalf("%+v %+v", result, found)
	}
	for _, d := range found {
		want := both
		if strings.HasPrefix(d.Name, string(keys[1])) {
			want = both[:1]
		}
		if !slices.Equal(d.Images, want) || d.Part != "object" || d.What != "a bit flipped" || d.Repaired {
			t.Errorf("%+v", d)
		}
	}
	if got := n.set.Damage(); len(got) != 3 {
		t.Errorf("known damage %+v", got)
	}
	n.flip(one.Layers[1].Digest) // the blob of the second layer cannot help
	before := len(r.Requests("GET", "/blobs/"))
	result, found = n.scrub(spec.ScrubRequest{})
	if result.Damaged != 4 || result.Repaired != 4 || n.offering().damage() != 0 {
		t.Errorf("%+v %+v", result, found)
	}
	if got, want := slices.Sorted(slices.Values(n.offering().healed)), slices.Sorted(slices.Values(keys[:2])); !slices.Equal(got, want) {
		t.Errorf("healed %v, want each layer once", got)
	}
	if got := len(r.Requests("GET", "/blobs/")) - before; got != 1 {
		t.Errorf("%d blobs were fetched, want that of the damaged blob", got)
	}
	if got := n.set.Damage(); len(got) != 0 {
		t.Errorf("known damage %+v", got)
	}
	if result, _ := n.scrub(spec.ScrubRequest{}); result.Damaged != 0 {
		t.Errorf("after the repair %+v", result)
	}
}

// Without blobs the registry heals, and where it does not, the next pull of
// the image does.
func TestScrubHealsFromRegistry(t *testing.T) {
	n, r, _, a, _ := scrubbed(t, follows(image.Drop))
	keys := n.keysOf(a)
	n.offering().breaks(keys[2], 0)
	result, found := n.scrub(spec.ScrubRequest{})
	if result.Repaired != 1 || found[0].Repair != r.Host()+"/one" {
		t.Errorf("%+v %+v", result, found)
	}
	n.offering().breaks(keys[0], 0)
	r.Break(registrytest.Fault{Handler: registrytest.Status(http.StatusUnauthorized)})
	result, found = n.scrub(spec.ScrubRequest{})
	if result.Repaired != 0 || len(found) != 1 || !strings.Contains(found[0].Repair, "pull "+r.Host()) {
		t.Errorf("%+v %+v", result, found)
	}
	n.restart()
	r.Mend()
	n.pull(r.Host() + "/one:v1")
	if n.offering().damage() != 0 || len(n.set.Damage()) != 0 {
		t.Errorf("after a pull there is damage still: %+v", n.set.Damage())
	}
}

func TestScrubMendsBlobs(t *testing.T) {
	n, r, one, a, b := scrubbed(t)
	made := n.change(b, spec.CommitRequest{Reference: "mine"})
	rec, err := n.set.Get(t.Context(), made.ID)
	n.must(err)
	for _, d := range []digest.Digest{one.Manifest.Digest, one.ConfigAt.Digest, one.Layers[0].Digest, one.Layers[2].Digest} {
		n.flip(d)
	}
	result, found := n.scrub(spec.ScrubRequest{})
	if result.Damaged != 4 || result.Repaired != 4 {
		t.Fatalf("%+v %+v", result, found)
	}
	for _, d := range found {
		plain := d.Name == one.Layers[2].Digest.String() // that is a plain tar
		if plain != (d.Repair == "made again from the layer") || !plain && !strings.HasPrefix(d.Repair, r.Host()) {
			t.Errorf("repaired %+v", d)
		}
		if !slices.Contains(d.Images, r.Host()+"/one:v1") {
			t.Errorf("%+v does not name its image", d)
		}
	}
	n.must(n.blobs.Delete(t.Context(), one.ConfigAt.Digest))
	if result, found := n.scrub(spec.ScrubRequest{}); result.Repaired != 1 || found[0].What != "is missing" {
		t.Errorf("%+v %+v", result, found)
	}

	// What nobody has is told, and not kept: a pull would take it for whole.
	n.flip(digest.Digest(rec.Manifest))
	r.Break(registrytest.Fault{Handler: registrytest.Status(http.StatusNotFound)})
	n.flip(one.Layers[1].Digest)
	result, found = n.scrub(spec.ScrubRequest{})
	if result.Damaged != 2 || result.Repaired != 0 {
		t.Errorf("%+v %+v", result, found)
	}
	if n.blobs.Has(one.Layers[1].Digest) || n.blobs.Has(digest.Digest(rec.Manifest)) {
		t.Error("damaged blobs were kept")
	}
	if _, err := n.set.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	if !n.blobs.Has(digest.Digest(made.ID)) {
		t.Error("an image that lost its manifest lost the rest, too")
	}
	if got := n.set.Damage(); len(got) != 2 || !slices.Equal(got[0].Images, []string{"mine:latest"}) && !slices.Equal(got[1].Images, []string{"mine:latest"}) {
		t.Errorf("known damage %+v", got)
	}
	r.Mend()
	if got := n.pull(r.Host() + "/one:v1"); got.ID != a.ID || !n.blobs.Has(one.Layers[1].Digest) {
		t.Error("a pull did not bring the blob back")
	}
	// With the image the damage goes.
	_, err = n.set.Remove(t.Context(), made.ID, true)
	n.must(err)
	if result, found := n.scrub(spec.ScrubRequest{}); result.Damaged != 0 || len(n.set.Damage()) != 0 {
		t.Errorf("%+v %+v", result, found)
	}
}

func TestScrubFindsWhatIsMissing(t *testing.T) {
	n, r, _, a, _ := scrubbed(t, follows(image.UntilPushed))
	keys := n.keysOf(a)
	n.must(n.snapshots.Remove(t.Context(), keys[2]))
	result, found := n.scrub(spec.ScrubRequest{NoRepair: true})
	if result.Damaged != 1 || found[0].Part != "layer" || found[0].Name != string(keys[2]) || !slices.Equal(found[0].Images, []string{r.Host() + "/one:v1"}) {
		t.Errorf("%+v %+v", result, found)
	}
	if result, _ = n.scrub(spec.ScrubRequest{}); result.Repaired != 1 {
		t.Errorf("%+v", result)
	}
	if files := n.files(a); files["c"] != "2" {
		t.Errorf("files %v", files)
	}
}

// One scrub at a time; a driver that cannot is said.
func TestScrubAtATime(t *testing.T) {
	n, _, _, _, _ := scrubbed(t)
	_, err := n.set.Scrub(t.Context(), spec.ScrubRequest{}, func(p spec.ScrubProgress) {
		if p.Checked == 1 {
			_, err := n.set.Scrub(t.Context(), spec.ScrubRequest{}, nil)
			n.want(errs.Conflict, err, "a second scrub")
		}
	})
	n.must(err)
	plain := newNode(t)
	if result, _ := plain.scrub(spec.ScrubRequest{}); !strings.Contains(result.Note, "not checked") {
		t.Errorf("%+v", result)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = n.set.Scrub(ctx, spec.ScrubRequest{}, nil)
	if errs.KindOf(err) != errs.Canceled {
		t.Errorf("a canceled scrub: %v", err)
	}
}

// In the background a pass is slow, goes on after a restart where it was, and
// comes again when it is due.
func TestScrubEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{T: t, dir: t.TempDir(), snapshots: fakesnapshot.New(), users: map[string][]string{}}
		offers(n)
		n.open()
		defer func() { n.close() }()
		n.offering().keeps("sha256:k", 900)
		for _, thing := range n.offering().things {
			thing.Size = 1 << 20
			n.offering().things[thing.Place] = thing
		}
		run := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			if err := n.set.ScrubEvery(ctx, 30); ctx.Err() == nil {
				t.Errorf("ended: %v", err)
			}
		}
		run(5 * time.Minute)
		if len(n.offering().scrubs) != 0 {
			t.Error("began at once")
		}
		run(12 * time.Minute) // of which two are spent reading
		if _, bytes := n.set.ScrubRead(); bytes < 100<<20 || bytes > 400<<20 {
			t.Errorf("read %d bytes in two minutes", bytes)
		}
		n.restart()
		run(3 * time.Minute)
		if got := n.offering().scrubs; len(got) != 2 || got[1] < "sha256:k/100" {
			t.Errorf("scrubs began at %q", got)
		}
		run(time.Hour)
		if last := n.set.LastScrub(); last == nil || last.Checked != 900 {
			t.Fatalf("the pass did not end: %+v", last)
		}
		count := len(n.offering().scrubs)
		run(29 * 24 * time.Hour)
		if len(n.offering().scrubs) != count {
			t.Error("began again too early")
		}
		run(2 * 24 * time.Hour)
		if got := len(n.offering().scrubs); got != count+1 {
			t.Errorf("%d scrubs more, want one", got-count)
		}
		if err := n.set.ScrubEvery(canceled(t), 0); err == nil {
			t.Error("never is not never")
		}
	})
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// Whoever watches is told.
func TestScrubIsTold(t *testing.T) {
	n, _, _, a, _ := scrubbed(t)
	n.offering().breaks(n.keysOf(a)[0], 2)
	n.scrub(spec.ScrubRequest{})
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := fmt.Sprint(n.told); got != "[object repaired true scrubbed 1 1]" {
		t.Errorf("told %s", got)
	}
}
