// Package archive reads and writes images as tar files: OCI layouts,
// docker's archives, and the two in one that docker 25 and later write.
// Both ways are streams; nothing needs to seek.
//
// Loading trusts nothing in the archive. Blobs wait beside the store until
// all is read and found complete; only then are those that an image needs
// put into it, so that a bad archive leaves nothing.
package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/manifest"
	"berth/image/reference"
	"berth/spec"
)

const (
	// entriesLimit bounds the entries of an archive; each file that waits
	// keeps a descriptor open.
	entriesLimit = 4096
	linksLimit   = 8 // how many links may lie in a row

	// DefaultLimit bounds the content of one archive, uncompressed.
	DefaultLimit = 4 * blob.DefaultLimit

	// containerdName is the annotation that carries an image's full name.
	containerdName = "io.containerd.image.name"
	dockerFile     = "manifest.json"
)

// Image is an image in an archive.
type Image struct {
	// Names may be none.
	Names []reference.Name
	// Target is a manifest or an index. Of an index not all needs to be here.
	Target ocispec.Descriptor
	// Manifest is the one that docker's part of the archive shows. Save
	// needs it for the format Docker; Load leaves it empty.
	Manifest ocispec.Descriptor
}

// LoadOptions bound and watch a Load.
type LoadOptions struct {
	Limit  int64               // DefaultLimit if zero
	Report func(spec.Progress) // may be nil
}

// Load reads an archive, plain or compressed with gzip or zstd, into the
// store and returns its images. errs.Invalid says what is wrong with the
// archive, errs.Exhausted that it exceeds the limit or the disk is full.
func Load(ctx context.Context, r io.Reader, store *blob.Store, o LoadOptions) (_ []Image, err error) {
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Report == nil {
		o.Report = func(spec.Progress) {}
	}
	plain, _, err := blob.Uncompress(r, o.Limit)
	if err != nil {
		return nil, fmt.Errorf("load archive: %w", err)
	}
	defer plain.Close()
	l := &loader{
		store: store, o: o, left: o.Limit, docs: map[string][]byte{}, links: map[string]string{},
		files: map[string]*part{}, parts: map[digest.Digest]*part{}, needed: map[digest.Digest]bool{},
	}
	defer func() { err = errors.Join(err, l.drop()) }()
	if err := l.readAll(ctx, plain); err != nil {
		return nil, fmt.Errorf("load archive: %w", err)
	}
	images, err := l.images(ctx)
	if err != nil {
		return nil, fmt.Errorf("load archive: %w", err)
	}
	if err := l.keep(ctx); err != nil {
		return nil, fmt.Errorf("load archive: %w", err)
	}
	return images, nil
}

// loader is one Load.
type loader struct {
	store *blob.Store
	o     LoadOptions
	left  int64 // of o.Limit; sparse files can claim more than they hold

	docs   map[string][]byte // index.json and the like
	links  map[string]string
	files  map[string]*part
	parts  map[digest.Digest]*part
	built  [][]byte // manifests made for docker's images
	needed map[digest.Digest]bool
}

// part is a file that waits for its place.
type part struct {
	digest digest.Digest
	size   int64
	writer *blob.Writer // nil where the store has it already
}

func (l *loader) readAll(ctx context.Context, r io.Reader) error {
	t := tar.NewReader(bufio.NewReader(r))
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		if n == entriesLimit {
			return errs.New(errs.Invalid, "it has more than %d entries", entriesLimit)
		}
		if err := l.entry(ctx, h, t); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
	_, err := io.Copy(io.Discard, r) // to the checksum of its compression
	return err
}

// damaged gives an error of the tar reader a kind, unless it has one.
func damaged(err error) error {
	if errs.KindOf(err) != errs.Internal {
		return err
	}
	return errs.New(errs.Invalid, "this is no tar archive, or it is damaged: %w", err)
}

func (l *loader) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	case tar.TypeSymlink:
		to := h.Linkname
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		}
		l.links[name], err = inside(to)
		return err
	case tar.TypeLink:
		l.links[name], err = inside(h.Linkname)
		return err
	case tar.TypeReg:
		return l.file(ctx, name, h.Size, r)
	}
	return errs.New(errs.Invalid, "an image archive has no entries of type %q", h.Typeflag)
}

// inside cleans a path and refuses one that leads out of the archive.
func inside(name string) (string, error) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) {
		return "", errs.New(errs.Invalid, "the path leads out of the archive")
	}
	return clean, nil
}

func (l *loader) file(ctx context.Context, name string, size int64, r io.Reader) error {
	if l.left -= size; size < 0 || l.left < 0 {
		return errs.New(errs.Exhausted, "the archive holds more than the allowed %d bytes", l.o.Limit)
	}
	if name == ocispec.ImageIndexFile || name == dockerFile {
		return l.document(name, size, r)
	}
	if _, twice := l.files[name]; twice {
		return errs.New(errs.Invalid, "it is there twice")
	}
	var want digest.Digest
	if at, ok := strings.CutPrefix(name, ocispec.ImageBlobsDir+"/"); ok {
		want = digest.Digest(strings.Replace(at, "/", ":", 1))
		if err := want.Validate(); err != nil {
			return errs.New(errs.Invalid, "no blob can be called that: %w", err)
		}
		if info, err := l.store.Info(want); err == nil {
			l.add(name, &part{digest: want, size: info.Size}, "exists")
			return nil
		}
	}
	w, err := l.store.Writer(ctx, want, size)
	if err != nil {
		return err
	}
	p := &part{size: size, writer: w}
	l.files[name] = p // so that drop finds it
	if _, err := w.ReadFrom(r); err != nil {
		return damaged(err)
	}
	if p.digest, err = w.Verify(); err != nil {
		return err
	}
	l.add(name, p, "complete")
	return nil
}

func (l *loader) document(name string, size int64, r io.Reader) error {
	if _, twice := l.docs[name]; twice || size > manifest.Limit {
		return errs.New(errs.Invalid, "it is there twice, or larger than %d bytes", manifest.Limit)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return damaged(err)
	}
	l.docs[name] = b
	return nil
}

func (l *loader) add(name string, p *part, status string) {
	l.files[name] = p
	if old := l.parts[p.digest]; old == nil {
		l.parts[p.digest] = p
	}
	l.o.Report(spec.Progress{Phase: spec.Fetching, Item: p.digest.String(), Current: p.size, Total: p.size, Status: status})
}

// keep puts what the images need into the store, manifests last.
func (l *loader) keep(ctx context.Context) error {
	for d := range l.needed {
		if p := l.parts[d]; p != nil && p.writer != nil {
			if _, err := p.writer.Commit(ctx); err != nil {
				return err
			}
		}
	}
	for _, b := range l.built {
		if _, err := l.store.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// drop lets go of all that was not kept.
func (l *loader) drop() error {
	var err error
	for _, p := range l.files {
		if p.writer != nil {
			err = errors.Join(err, p.writer.Close())
		}
	}
	return err
}

// find follows links to a file.
func (l *loader) find(name string) (*part, error) {
	at, err := inside(name)
	if err != nil {
		return nil, fmt.Errorf("%.200q: %w", name, err)
	}
	for range linksLimit {
		if p := l.files[at]; p != nil {
			return p, nil
		}
		to, ok := l.links[at]
		if !ok {
			break
		}
		at = to
	}
	return nil, errs.New(errs.Invalid, "%.200q is missing from the archive", name)
}

// part returns a blob that is here, waiting or stored.
func (l *loader) part(d digest.Digest) *part {
	if p := l.parts[d]; p != nil {
		return p
	}
	if info, err := l.store.Info(d); err == nil {
		l.parts[d] = &part{digest: d, size: info.Size}
		return l.parts[d]
	}
	return nil
}

// read returns a small blob.
func (l *loader) read(ctx context.Context, p *part, limit int64) ([]byte, error) {
	if p.size > limit {
		return nil, errs.New(errs.Invalid, "blob %s has %d bytes; up to %d are accepted", p.digest, p.size, limit)
	}
	if p.writer == nil {
		return l.store.Read(ctx, p.digest, limit)
	}
	b := make([]byte, p.size)
	if n, err := p.writer.ReadAt(b, 0); err != nil && int64(n) < p.size {
		return nil, err
	}
	return b, nil
}
