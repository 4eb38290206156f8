package toc

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/base/errs"
	"berth/image/blob"
	"berth/image/layer"
	"berth/image/tree"
)

// Annotations of a layer that say where its table of contents lies.
const (
	// StargzDigest is of eStargz: the digest of the table, which a footer of the
	// blob leads to.
	StargzDigest = "containerd.io/snapshot/stargz/toc.digest"
	// ChunkedDigest and ChunkedPosition are of zstd:chunked.
	ChunkedDigest   = "io.github.containers.zstd-chunked.manifest-checksum"
	ChunkedPosition = "io.github.containers.zstd-chunked.manifest-position"
)

// What a table may take at most: some million files.
const (
	givenLimit   = 64 << 20  // in the blob
	givenContent = 512 << 20 // uncompressed
)

// Source opens bytes of a blob.
type Source func(ctx context.Context, from, to int64) (io.ReadCloser, error)

// Given is what a layer's own table of contents says.
type Given struct {
	Table *Table
	Root  *tree.Node // what the layer changes; every body is an object
}

// HasGiven says whether a layer brings a table of contents with it.
func HasGiven(desc ocispec.Descriptor) bool {
	a := desc.Annotations
	return a[StargzDigest] != "" || a[ChunkedDigest] != "" && a[ChunkedPosition] != ""
}

// ReadGiven fetches a layer's own table of contents and verifies it against
// its annotation. That it tells the truth about the layer is another matter:
// only the whole layer shows that. Invalid: it is not what its digest says, or
// hostile, as one whose files have more than limit bytes together.
// Unsupported: it says things that are not understood here.
func ReadGiven(ctx context.Context, desc ocispec.Descriptor, limit int64, part Source) (*Given, error) {
	read, compression := readStargz, blob.Gzip
	if desc.Annotations[StargzDigest] == "" {
		read, compression = readChunked, blob.Zstd
	}
	entries, end, err := read(ctx, desc, part)
	if err != nil {
		return nil, fmt.Errorf("table of contents of layer %s: %w", desc.Digest, err)
	}
	g, err := given(desc, compression, entries, end, limit)
	if err != nil {
		return nil, fmt.Errorf("table of contents of layer %s: %w", desc.Digest, err)
	}
	return g, nil
}

// listing is a table as both formats write it.
type listing struct {
	Version int        `json:"version"`
	Entries []givenRow `json:"entries"`
}

// givenRow is a file, or a further chunk of the one before.
type givenRow struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	Size        int64             `json:"size"`
	UID         int               `json:"uid"`
	GID         int               `json:"gid"`
	ModTime     string            `json:"modtime"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      digest.Digest     `json:"digest"`
	Offset      int64             `json:"offset"`
	InnerOffset int64             `json:"innerOffset"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkType   string            `json:"chunkType"`
}

func readAll(ctx context.Context, part Source, from, to int64) ([]byte, error) {
	r, err := part(ctx, from, to)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, to-from))
	if err == nil && int64(len(b)) < to-from {
		err = errs.New(errs.Unavailable, "%d of %d bytes came", len(b), to-from)
	}
	return b, err
}

// stargzFooter is how long the last gzip member of an eStargz blob is. In its
// extra field are the offset of the table in hexadecimal, and a name.
const stargzFooter = 51

func readStargz(ctx context.Context, desc ocispec.Descriptor, part Source) (rows []givenRow, end int64, err error) {
	if desc.Size < stargzFooter {
		return nil, 0, errs.New(errs.Invalid, "the blob is too short")
	}
	footer, err := readAll(ctx, part, desc.Size-stargzFooter, desc.Size)
	if err != nil {
		return nil, 0, err
	}
	at := bytes.Index(footer, []byte("STARGZ"))
	if at < 16 {
		return nil, 0, errs.New(errs.Unsupported, "no footer")
	}
	if _, err := fmt.Sscanf(string(footer[at-16:at]), "%016x", &end); err != nil || end < 0 || end > desc.Size-stargzFooter || desc.Size-end > givenLimit {
		return nil, 0, errs.New(errs.Invalid, "the footer leads nowhere")
	}
	packed, err := readAll(ctx, part, end, desc.Size-stargzFooter)
	if err != nil {
		return nil, 0, err
	}
	plain, err := blob.UncompressFrom(bytes.NewReader(packed), blob.Gzip, blob.Point{}, givenContent)
	if err != nil {
		return nil, 0, err
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	if h, err := archive.Next(); err != nil || h.Name != "stargz.index.json" {
		return nil, 0, errs.New(errs.Invalid, "it is not where the footer says: %w", errors.Join(err))
	}
	text, err := io.ReadAll(archive)
	if err != nil {
		return nil, 0, errs.New(errs.Invalid, "%w", err)
	}
	rows, err = parseGiven(text, text, digest.Digest(desc.Annotations[StargzDigest]))
	return rows, end, err
}

func readChunked(ctx context.Context, desc ocispec.Descriptor, part Source) ([]givenRow, int64, error) {
	var offset, packedSize, size, kind int64
	position := strings.ReplaceAll(desc.Annotations[ChunkedPosition], ":", " ")
	if _, err := fmt.Sscan(position, &offset, &packedSize, &size, &kind); err != nil || kind != 1 {
		return nil, 0, errs.New(errs.Unsupported, "position %q", desc.Annotations[ChunkedPosition])
	}
	if offset < 0 || packedSize < 0 || packedSize > givenLimit || offset > desc.Size-packedSize || size < 0 || size > givenContent {
		return nil, 0, errs.New(errs.Invalid, "position %q", desc.Annotations[ChunkedPosition])
	}
	packed, err := readAll(ctx, part, offset, offset+packedSize)
	if err != nil {
		return nil, 0, err
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(givenContent))
	if err != nil {
		return nil, 0, err
	}
	defer z.Close()
	text, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, 0, errs.New(errs.Invalid, "%w", err)
	}
	rows, err := parseGiven(text, packed, digest.Digest(desc.Annotations[ChunkedDigest]))
	return rows, offset, err
}

// parseGiven reads a table whose signed bytes have the digest want.
func parseGiven(text, signed []byte, want digest.Digest) ([]givenRow, error) {
	if err := want.Validate(); err != nil {
		return nil, errs.New(errs.Invalid, "digest %.80q: %w", want, err)
	}
	if got := want.Algorithm().FromBytes(signed); got != want {
		return nil, errs.New(errs.Invalid, "it is %s, not %s", got, want)
	}
	var l listing
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	if l.Version != 1 {
		return nil, errs.New(errs.Unsupported, "version %d", l.Version)
	}
	return l.Entries, nil
}

// given makes table and tree of rows. What lies between the chunks that rows
// name is headers of the tar, which nobody wants.
func given(desc ocispec.Descriptor, compression blob.Compression, rows []givenRow, end, limit int64) (*Given, error) {
	files, err := gather(rows)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if f.Size < 0 || f.Size > limit {
			return nil, errs.New(errs.Invalid, "files of more bytes than is allowed, %.200q among them", f.Name)
		}
		limit -= f.Size
	}
	t := &Table{Blob: desc.Digest, Size: desc.Size, Compression: compression, apart: true}
	places, err := t.lay(files, end)
	if err != nil {
		return nil, err
	}
	if err := t.SetBodies(places); err != nil {
		return nil, err
	}
	root, err := layer.Listed(headers(files))
	if err != nil {
		return nil, err
	}
	return &Given{Table: t, Root: root}, nil
}

// givenFile is a row with its chunks.
type givenFile struct {
	givenRow
	object tree.Digest
	chunks []chunk
}

// chunk is size bytes, after inner others of what begins at offset.
type chunk struct{ offset, inner, size int64 }

func gather(rows []givenRow) ([]givenFile, error) {
	var files []givenFile
	for _, row := range rows {
		if row.ChunkType != "" {
			return nil, errs.New(errs.Unsupported, "chunks of type %q", row.ChunkType)
		}
		if row.Type != "chunk" {
			files = append(files, givenFile{givenRow: row})
		}
		if len(files) == 0 {
			return nil, errs.New(errs.Invalid, "a chunk of no file")
		}
		f := &files[len(files)-1]
		if row.Type == "chunk" && (f.Type != "reg" || f.Name != row.Name) {
			return nil, errs.New(errs.Invalid, "a chunk of no file")
		}
		if f.Type != "reg" || f.Size == 0 {
			continue
		}
		done := int64(0)
		for _, c := range f.chunks {
			done += c.size
		}
		c := chunk{offset: row.Offset, inner: row.InnerOffset, size: row.ChunkSize}
		if c.size == 0 {
			c.size = f.Size - done
		}
		if row.ChunkOffset != done || c.size <= 0 || c.size > f.Size-done || c.offset < 0 || c.inner < 0 || c.inner > 1<<40 {
			return nil, errs.New(errs.Invalid, "%.200q: a chunk that cannot be", f.Name)
		}
		f.chunks = append(f.chunks, c)
	}
	for i := range files {
		if err := files[i].check(); err != nil {
			return nil, fmt.Errorf("%.200q: %w", files[i].Name, err)
		}
	}
	return files, nil
}

func (f *givenFile) check() error {
	if f.Type != "reg" || f.Size == 0 {
		return nil
	}
	sum := int64(0)
	for _, c := range f.chunks {
		sum += c.size
	}
	if sum != f.Size {
		return errs.New(errs.Invalid, "chunks of %d bytes make a file of %d", sum, f.Size)
	}
	if f.Digest.Validate() != nil || f.Digest.Algorithm() != digest.SHA256 {
		return errs.New(errs.Unsupported, "digest %.80q", f.Digest)
	}
	_, err := hex.Decode(f.object[:], []byte(f.Digest.Encoded()))
	return err
}

// lay puts the chunks one behind the other in a content of their own, and says
// where that puts the bodies.
func (t *Table) lay(files []givenFile, end int64) (iter.Seq[Body], error) {
	sizes := map[int64]int64{} // of what begins at an offset
	for _, f := range files {
		for _, c := range f.chunks {
			sizes[c.offset] = max(sizes[c.offset], c.inner+c.size)
		}
	}
	starts := map[int64]int64{}
	offsets := make([]int64, 0, len(sizes))
	for offset := range sizes {
		offsets = append(offsets, offset)
	}
	slices.Sort(offsets)
	for _, offset := range offsets {
		if offset >= end {
			return nil, errs.New(errs.Invalid, "a chunk at %d is beyond the end", offset)
		}
		starts[offset] = t.Content
		t.points = append(t.points, point{bit: offset * 8, out: t.Content})
		if t.Content += sizes[offset]; t.Content < 0 {
			return nil, errs.New(errs.Invalid, "chunks of more than 2^63 bytes")
		}
	}
	if len(offsets) == 0 {
		t.points = []point{{}}
	}
	t.points = append(t.points, point{bit: end * 8, out: t.Content})
	type place struct{ offset, size int64 }
	seen := map[place]bool{}
	var bodies []Body
	for _, f := range files {
		if len(f.chunks) == 0 {
			continue
		}
		at := starts[f.chunks[0].offset] + f.chunks[0].inner
		next := at
		for _, c := range f.chunks {
			if starts[c.offset]+c.inner != next {
				return nil, errs.New(errs.Unsupported, "%.200q: its chunks do not follow one another", f.Name)
			}
			next += c.size
		}
		if p := (place{at, f.Size}); !seen[p] {
			seen[p] = true
			bodies = append(bodies, Body{Object: f.object, Offset: at, Size: f.Size})
		}
	}
	return slices.Values(bodies), nil
}

// headers are the rows as a tar has them.
func headers(files []givenFile) iter.Seq2[*tar.Header, tree.Digest] {
	kinds := map[string]byte{
		"reg": tar.TypeReg, "dir": tar.TypeDir, "symlink": tar.TypeSymlink, "hardlink": tar.TypeLink, "char": tar.TypeChar, "block": tar.TypeBlock, "fifo": tar.TypeFifo,
	}
	return func(yield func(*tar.Header, tree.Digest) bool) {
		for _, f := range files {
			h := &tar.Header{
				Typeflag: cmp.Or(kinds[f.Type], 'X'), Name: f.Name, Linkname: f.LinkName, Mode: f.Mode & 0o7777, Size: f.Size, Uid: f.UID, Gid: f.GID,
				Devmajor: f.DevMajor, Devminor: f.DevMinor, PAXRecords: map[string]string{},
			}
			h.ModTime, _ = time.Parse(time.RFC3339Nano, f.ModTime) // none is the beginning of time, as with tars
			if h.ModTime.IsZero() {
				h.ModTime = time.Unix(0, 0)
			}
			for name, value := range f.Xattrs {
				h.PAXRecords["SCHILY.xattr."+name] = string(value)
			}
			if !yield(h, f.object) {
				return
			}
		}
	}
}
