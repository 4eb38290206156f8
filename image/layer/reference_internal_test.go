package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"berth/base/errs"
	"berth/image/tree"
	"berth/image/tree/treetest"
)

// reference reads a layer with the standard library's parser, a body at a
// time.
func reference(layer []byte, inline, limit int64) (*tree.Node, error) {
	b := newBuilder()
	archive := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			b.names.Finish()
			return b.root, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e := entryOf(h)
		n, err := b.add(&e)
		if err != nil {
			return nil, err
		}
		if n == nil {
			continue
		}
		if limit -= h.Size; limit < 0 {
			return nil, errTooBig
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
		n.Size = h.Size
		if h.Size > inline {
			n.Object = sha256.Sum256(body)
		} else {
			n.Body = body
		}
	}
}

// kept is bodies in memory.
type kept map[tree.Digest][]byte

func (k kept) open(d tree.Digest) (io.ReadCloser, error) {
	body, ok := k[d]
	if !ok {
		return nil, errs.New(errs.NotFound, "no body %x", d)
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

// bodiesOf takes the bodies that a recipe names out of the tar.
func bodiesOf(t *testing.T, recipe, layer []byte) kept {
	t.Helper()
	k := kept{}
	for b, err := range Bodies(bytes.NewReader(recipe)) {
		if err != nil {
			t.Fatal(err)
		}
		body := layer[b.Offset : b.Offset+b.Size]
		if sha256.Sum256(body) != b.Digest {
			t.Fatalf("body %x is not at %d of the tar", b.Digest, b.Offset)
		}
		k[b.Digest] = body
	}
	return k
}

// checkRead compares Read with the reference, and what its recipe makes with
// the layer.
func checkRead(t *testing.T, layer []byte, inline int) *tree.Node {
	t.Helper()
	const limit = 32 << 20
	want, wantErr := reference(layer, int64(inline), limit)
	var recipe bytes.Buffer
	got, err := Read(t.Context(), Config{InlineLimit: inline, MaxBytes: limit, Recipe: &recipe, Workers: 2}, iotest.DataErrReader(bytes.NewReader(layer)))
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("error %v, want %v", err, wantErr)
	}
	if err != nil {
		if !errors.Is(err, errs.Invalid) {
			t.Fatalf("error %v is no errs.Invalid", err)
		}
		return nil
	}
	if diff := treetest.Equal(got, want); diff != "" {
		t.Fatalf("tree differs from the reference: %s", diff)
	}
	bodies := bodiesOf(t, recipe.Bytes(), layer)
	var back bytes.Buffer
	if err := Write(t.Context(), &recipe, bodies.open, &back); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back.Bytes(), layer) {
		t.Fatalf("recipe makes another tar, of %d bytes for %d", back.Len(), len(layer))
	}
	return got
}

func archiveOf(t testing.TB, format tar.Format, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	random := rand.New(rand.NewPCG(1, 2))
	for _, h := range entries {
		h.Format = format
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			body := make([]byte, h.Size)
			for i := range body {
				body[i] = byte(random.Uint32() >> 24)
			}
			w.Write(body)
		}
	}
	w.Close()
	return buf.Bytes()
}

func file(name string, size int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}
}

// weird are archives that not every parser takes.
func weird(t testing.TB) map[string][]byte {
	long := strings.Repeat("long/", 30) + strings.Repeat("n", 255)
	negative := file("negative", 3)
	negative.ModTime = time.Unix(-2, 5e8)
	owned := file("owned", 3)
	owned.Uid, owned.Gid = 1<<31+5, 1<<32-2
	labelled := file("labelled", 3)
	labelled.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b\x00c", "SCHILY.xattr.user.empty": "", "SCHILY.xattr.trusted.overlay.opaque": "y", "LIBARCHIVE.xattr.user.b": "Yg", "comment": "x"}
	global := tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x", "path": "no"}}
	dev := tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}
	plain := archiveOf(t, tar.FormatUSTAR, file("a", 10), file("b", 5000), file("c", 1<<20), file("d", 3<<20+7), file("e", 600), dev)
	m := map[string][]byte{
		"empty stream":     {},
		"only the end":     make([]byte, 1024),
		"half the end":     make([]byte, 512),
		"plain":            plain,
		"no end":           plain[:len(plain)-1024],
		"half an end":      plain[:len(plain)-512],
		"padding cut":      archiveOf(t, tar.FormatUSTAR, file("a", 10))[:512+10],
		"garbage":          slices.Concat(plain, []byte("garbage that is no tar")),
		"much garbage":     slices.Concat(plain, bytes.Repeat([]byte("garbage"), 400_000)),
		"second archive":   slices.Concat(plain, plain),
		"gnu":              archiveOf(t, tar.FormatGNU, file(long, 100), tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: long}, negative2(negative)),
		"pax":              archiveOf(t, tar.FormatPAX, file(long, 100), tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: long}, negative, owned, labelled, global, file("after", 900)),
		"base 256":         archiveOf(t, tar.FormatGNU, owned),
		"prefix":           archiveOf(t, tar.FormatUSTAR, file(strings.Repeat("p/", 60)+"name", 5)),
		"sparse":           oldSparse(t),
		"pax sparse":       paxSparse(t),
		"many":             archiveOf(t, tar.FormatUSTAR, many(3000, 700)...),
		"blocks on a line": archiveOf(t, tar.FormatUSTAR, file("a", 1<<20-1024), file("b", 1<<20), file("c", 1<<20+1), file("d", 1<<20-512), file("e", 2<<20)),
		"zero and garbage": slices.Concat(make([]byte, 512), bytes.Repeat([]byte{1}, 512)),
		"old type":         retype(archiveOf(t, tar.FormatUSTAR, file("f", 5), tar.Header{Name: "d/", Typeflag: tar.TypeDir}), 0),
		"contiguous":       retype(archiveOf(t, tar.FormatUSTAR, file("f", 5)), '7'),
		"unknown type":     retype(archiveOf(t, tar.FormatUSTAR, file("f", 5)), 'Z'),
		"no magic":         edit(archiveOf(t, tar.FormatUSTAR, file("f", 5)), func(h []byte) { clear(h[257:500]) }),
		"star": edit(archiveOf(t, tar.FormatUSTAR, file("f", 5)), func(h []byte) {
			copy(h[345:], "front")
			copy(h[476:], "00000000001 00000000001 ")
			copy(h[508:], "tar\x00")
		}),
		"gnu with prefix":  edit(archiveOf(t, tar.FormatGNU, file("f", 5)), func(h []byte) { copy(h[345:], "front/part") }),
		"gnu with times":   edit(archiveOf(t, tar.FormatGNU, file("f", 5)), func(h []byte) { copy(h[345:], "00000000001\x0000000000001\x00") }),
		"bad checksum":     append([]byte("x"), plain[1:]...),
		"old checksum":     signedChecksum(archiveOf(t, tar.FormatGNU, file("f\xe4\xff", 5))),
		"negative size":    edit(archiveOf(t, tar.FormatGNU, file("f", 5)), func(h []byte) { copy(h[124:], bytes.Repeat([]byte{0xff}, 12)) }),
		"huge size":        edit(archiveOf(t, tar.FormatGNU, file("f", 5)), func(h []byte) { copy(h[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }),
		"folder with size": edit(archiveOf(t, tar.FormatGNU, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, file("f", 5)), func(h []byte) { copy(h[124:], "00000001000\x00") }),
	}
	for _, at := range []int{100, 512 + 3, 512 + 512 + 512 + 100, 200_000, 3 << 20} {
		m[fmt.Sprint("cut at ", at)] = plain[:at]
	}
	return m
}

// negative2 is a time that GNU's base 256 can say: of whole seconds.
func negative2(h tar.Header) tar.Header { h.ModTime = time.Unix(-77, 0); return h }

func many(n int, size int64) []tar.Header {
	var all []tar.Header
	for i := range n {
		all = append(all, file(fmt.Sprintf("d%d/f%d", i%17, i), size+int64(i%5)*300))
	}
	return all
}

// edit changes the first header of an archive.
func edit(archive []byte, change func(h []byte)) []byte {
	h := archive[:512]
	change(h)
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum(h)))
	return archive
}

func signedChecksum(archive []byte) []byte {
	copy(archive[148:], fmt.Sprintf("%06o\x00 ", signedSum(archive[:512])))
	return archive
}

// retype changes the types of all entries, of which none is longer than a block.
func retype(archive []byte, kind byte) []byte {
	for at := 0; at < len(archive)-1024; at += 512 {
		if h := archive[at : at+512]; string(h[257:262]) == "ustar" {
			edit(h, func(h []byte) { h[156] = kind })
		}
	}
	return archive
}

// oldSparse is GNU's first way of files with holes, with more of them than
// fit into the header.
func oldSparse(t testing.TB) []byte {
	archive := archiveOf(t, tar.FormatGNU, file("holes", 6*512), file("after", 700))
	h := slices.Clone(archive[:512])
	more := make([]byte, 512)
	for i := range 6 {
		to := h[386+24*i:]
		if i >= 4 {
			to = more[24*(i-4):]
		}
		copy(to, fmt.Sprintf("%011o\x00%011o\x00", i*10_000, 512))
	}
	h[482] = 1
	copy(h[483:], fmt.Sprintf("%011o\x00", 100_000))
	edit(h, func(h []byte) { h[156] = 'S' })
	return slices.Concat(h, more, archive[512:])
}

// paxSparse is its newest, with the map in front of the body.
func paxSparse(t testing.TB) []byte {
	body := make([]byte, 512+1000)
	copy(body, "2\n1000\n500\n2000000\n500\n")
	copy(body[512:], bytes.Repeat([]byte("data"), 250))
	records := ""
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=holes", "GNU.sparse.realsize=2100000"} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r)
	}
	x := archiveOf(t, tar.FormatUSTAR, file("x", int64(len(records))))[:1024]
	copy(x[512:], records)
	clear(x[512+len(records):])
	edit(x, func(h []byte) { h[156] = 'x' })
	f := archiveOf(t, tar.FormatUSTAR, file("GNUSparseFile.0/holes", int64(len(body))), file("after", 700))
	copy(f[512:], body)
	return slices.Concat(x, f)
}

func TestWeirdArchives(t *testing.T) {
	for name, archive := range weird(t) {
		for _, inline := range []int{0, 64, 4096} {
			t.Run(fmt.Sprint(name, "/", inline), func(t *testing.T) { checkRead(t, archive, inline) })
		}
	}
}

func TestSparse(t *testing.T) {
	for _, archive := range [][]byte{oldSparse(t), paxSparse(t)} {
		root := checkRead(t, archive, 64)
		if holes, after := root.Lookup("holes"), root.Lookup("after"); holes == nil || holes.Size < 100_000 || after == nil || after.Size != 700 {
			t.Errorf("holes are %+v, after is %+v", holes, after)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, archive := range weird(f) {
		if len(archive) < 1<<14 { // small ones are changed more often
			f.Add(archive, 64)
		}
	}
	f.Fuzz(func(t *testing.T, layer []byte, inline int) { checkRead(t, fixed(layer), max(0, min(inline, 1<<16))) })
}

// fixed gives headers their checksums, for a fuzzer does not guess them.
func fixed(layer []byte) []byte {
	layer = slices.Clone(layer)
	for at := 0; at+512 <= len(layer); at += 512 {
		if h := layer[at : at+512]; string(h[257:262]) == "ustar" {
			edit(h, func([]byte) {})
		}
	}
	return layer
}

func FuzzWrite(f *testing.F) {
	for _, archive := range weird(f) {
		var recipe bytes.Buffer
		if _, err := Read(context.Background(), Config{Recipe: &recipe}, bytes.NewReader(archive)); err == nil && recipe.Len() < 1<<16 {
			f.Add(recipe.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, recipe []byte) {
		none := func(tree.Digest) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }
		err := Write(t.Context(), bytes.NewReader(recipe), none, io.Discard)
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("error %v is no errs.Invalid", err)
		}
		for b, err := range Bodies(bytes.NewReader(recipe)) {
			if err == nil && (b.Size <= 0 || b.Offset < 0) {
				t.Errorf("body %+v", b)
			}
		}
	})
}
