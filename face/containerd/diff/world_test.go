package diff_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	coresnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"berth/base/kv"
	"berth/face/containerd/diff"
	"berth/face/containerd/snapshots"
	"berth/image/blob"
	"berth/node/image"
	"berth/node/lease"
	"berth/node/snapshot"
	"berth/node/snapshot/fakesnapshot"
)

// counting counts how many layers are unpacked.
type counting struct {
	*fakesnapshot.Store
	ingests atomic.Int32
	slow    func()
	diff    func(ctx context.Context, key snapshot.Key, w io.Writer) error // nil: as usual
}

func (c *counting) Diff(ctx context.Context, key snapshot.Key, w io.Writer) error {
	if c.diff != nil {
		return c.diff(ctx, key, w)
	}
	return c.Store.Diff(ctx, key, w)
}

func (c *counting) Ingest(ctx context.Context, layer io.Reader) (snapshot.Ingest, error) {
	c.ingests.Add(1)
	if c.slow != nil {
		c.slow()
	}
	return c.Store.Ingest(ctx, layer)
}

// trees mounts as rootfs.Trees does, by copying.
type trees struct {
	dir   string
	store snapshot.Store
	mu    sync.Mutex
}

func (r *trees) Mounts(ctx context.Context, key snapshot.Key) ([]snapshot.Mount, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	target := filepath.Join(r.dir, string(key))
	err := os.Mkdir(target, 0o700)
	if err == nil {
		err = r.store.Mount(ctx, key, target)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return []snapshot.Mount{{Type: "bind", Source: target, Options: []string{"rbind", "rw"}}}, nil
}

func (r *trees) Remove(ctx context.Context, key snapshot.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	target := filepath.Join(r.dir, string(key))
	if err := r.store.Unmount(ctx, target); err != nil {
		return err
	}
	return os.RemoveAll(target)
}

// told remembers topics.
type told struct {
	mu     sync.Mutex
	topics []string
}

func (e *told) Publish(_ context.Context, namespace, topic string, _ proto.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.topics = append(e.topics, namespace+topic)
}

// world is a node with containerd's snapshots and diff services.
type world struct {
	*testing.T
	dir     string
	store   *counting
	db      *kv.DB
	images  *image.Set
	leases  *lease.Set
	content content.Store
	service *snapshots.Service
	differ  *diff.Service
	events  told
	conn    *grpc.ClientConn
	end     func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, dir: t.TempDir(), store: &counting{Store: fakesnapshot.New()}}
	var err error
	w.content, err = local.NewLabeledStore(filepath.Join(w.dir, "content"), &labels{})
	w.must(err)
	w.open()
	t.Cleanup(func() { w.end() })
	return w
}

func (w *world) open() {
	w.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	w.db, err = kv.Open(filepath.Join(w.dir, "db"))
	w.must(err)
	blobs, err := blob.Open(w.Context(), filepath.Join(w.dir, "blobs"), log)
	w.must(err)
	w.images, err = image.Open(w.Context(), image.Config{DB: w.db, Blobs: blobs, Snapshots: w.store, Log: log})
	w.must(err)
	w.leases, err = lease.Open(lease.Config{DB: w.db, Log: log})
	w.must(err)
	mounted := &trees{dir: filepath.Join(w.dir, "trees"), store: w.store}
	w.must(os.MkdirAll(mounted.dir, 0o700))
	w.service, err = snapshots.Open(w.Context(), snapshots.Config{
		Store: w.store, DB: w.db, Trees: mounted, Log: log,
		Node: &snapshots.Node{Dir: mounted.dir, Names: []string{"overlayfs", "native"}, Layers: w.images, Leases: w.leases, Events: &w.events},
	})
	w.must(err)
	w.images.SetHolders(w.service.LetGo)
	w.leases.Own(snapshots.Collected{Service: w.service})
	w.differ = diff.New(diff.Config{Content: w.content, Snapshots: w.service, Log: log})
	server := grpc.NewServer()
	w.service.Register(server)
	w.differ.Register(server)
	listener := bufconn.Listen(1 << 16)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	w.conn, err = grpc.NewClient("passthrough:world", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	w.must(err)
	w.end = sync.OnceFunc(func() {
		_ = w.conn.Close()
		server.Stop()
		serving.Wait()
		w.must(errors.Join(w.images.Close(), blobs.Close(), w.db.Close()))
	})
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// in is a context of a namespace.
func (w *world) in(namespace string) context.Context {
	return namespaces.WithNamespace(w.Context(), namespace)
}

func (w *world) snapshotter(name string) coresnapshots.Snapshotter {
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(w.conn), name)
}

func (w *world) diffs() diffapi.DiffClient { return diffapi.NewDiffClient(w.conn) }

// labels is where the content of tests keeps labels.
type labels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[d], nil
}

func (l *labels) Set(d digest.Digest, labels map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[digest.Digest]map[string]string{}
	}
	l.all[d] = labels
	return nil
}

func (l *labels) Update(d digest.Digest, update map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := map[string]string{}
	for _, from := range []map[string]string{l.all[d], update} {
		maps.Copy(changed, from)
	}
	if l.all == nil {
		l.all = map[digest.Digest]map[string]string{}
	}
	l.all[d] = changed
	return changed, nil
}

// layerTar is a tar of files.
func (w *world) layerTar(files map[string]string) []byte {
	w.Helper()
	var out bytes.Buffer
	z := tar.NewWriter(&out)
	for name, body := range files {
		w.must(z.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}))
		_, err := z.Write([]byte(body))
		w.must(err)
	}
	w.must(z.Close())
	return out.Bytes()
}

func (w *world) put(mediaType string, body []byte) ocispec.Descriptor {
	w.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	w.must(content.WriteBlob(w.in("test"), w.content, desc.Digest.String(), bytes.NewReader(body), desc))
	return desc
}

func (w *world) zipped(body []byte) []byte {
	w.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(body)
	w.must(err)
	w.must(z.Close())
	return out.Bytes()
}

// putImage puts an image of layers into the content.
func (w *world) putImage(layers ...map[string]string) (manifest ocispec.Descriptor, diffs []digest.Digest) {
	w.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, files := range layers {
		plain := w.layerTar(files)
		diffs = append(diffs, digest.FromBytes(plain))
		m.Layers = append(m.Layers, w.put(ocispec.MediaTypeImageLayerGzip, w.zipped(plain)))
	}
	config, err := json.Marshal(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs}})
	w.must(err)
	m.Config = w.put(ocispec.MediaTypeImageConfig, config)
	body, err := json.Marshal(m)
	w.must(err)
	return w.put(ocispec.MediaTypeImageManifest, body), diffs
}
