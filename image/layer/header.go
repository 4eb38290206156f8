package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"berth/base/errs"
	"berth/image/tree"
)

// Where things are in a header, after its first 257 bytes by its format.
const (
	headerSize = 512

	nameAt     = 0   // 100
	modeAt     = 100 // 8
	uidAt      = 108 // 8
	gidAt      = 116 // 8
	sizeAt     = 124 // 12
	timeAt     = 136 // 12
	checksumAt = 148 // 8
	kindAt     = 156
	linkAt     = 157 // 100
	magicAt    = 257 // 6, then a version of 2
	majorAt    = 329 // 8
	minorAt    = 337 // 8
	prefixAt   = 345 // 155; of star 131
	trailerAt  = 508 // of star
)

const (
	maxExtension  = 1 << 20 // of records, or of a long name, before an entry
	maxExtensions = 4 << 20 // of all headers before it
)

// extension is what comes before an entry and says more of it. Its values lie
// in raw.
type extension struct {
	raw                []byte // all headers since the last entry
	longName, longLink []byte // of GNU
	pax
}

// pax is records of one PAX header. Empty values say nothing.
type pax struct {
	path, link, uid, gid, size, mtime, atime, ctime []byte
	xattrs                                          []tree.Xattr
	sparse                                          bool // there are records of GNU's sparse files
}

func (x *extension) reset() {
	*x = extension{raw: x.raw[:0]}
}

// header reads on to the next entry. At the end of the archive it is io.EOF.
func (r *reader) header() error {
	r.ext.reset()
	for {
		h, err := r.block()
		if err != nil {
			return err
		}
		r.ext.raw = append(r.ext.raw, h...)
		h = r.ext.raw[len(r.ext.raw)-headerSize:]
		if err := r.entry.parse(h); err != nil {
			return err
		}
		switch r.entry.kind {
		case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
			if err := r.extend(); err != nil {
				return err
			}
		default:
			return r.entry.merge(&r.ext)
		}
	}
}

// block reads the next header. Two of zeros end the archive, as does the end
// of the stream.
func (r *reader) block() ([]byte, error) {
	if err := r.stream.need(headerSize); err != nil {
		return nil, err
	}
	h := r.stream.take(headerSize)
	if h[0] != 0 || !allZero(h) {
		return h, nil
	}
	if err := r.stream.need(headerSize); err != nil {
		return nil, err
	}
	if allZero(r.stream.take(headerSize)) {
		return nil, io.EOF
	}
	return nil, errHeader
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// extend reads what follows a header that is only about the next one.
func (r *reader) extend() error {
	kind, size := r.entry.kind, r.entry.size
	if size > maxExtension || len(r.ext.raw) > maxExtensions {
		return errs.New(errs.Invalid, "%d bytes of records for one entry", size)
	}
	body, err := r.keep(int(size))
	if err == nil {
		err = r.stream.pad()
	}
	if err != nil {
		return err
	}
	switch kind {
	case tar.TypeGNULongName:
		r.ext.longName = field(body)
	case tar.TypeGNULongLink:
		r.ext.longLink = field(body)
	case tar.TypeXHeader:
		r.ext.pax, err = parsePAX(body)
	default: // of all entries that follow; nothing that it could say is wanted
		_, err = parsePAX(body)
		r.ext.reset()
	}
	return err
}

// keep takes n bytes, and as many zeros as will follow them, into the raw
// extension.
func (r *reader) keep(n int) ([]byte, error) {
	from := len(r.ext.raw)
	r.ext.raw = slices.Grow(r.ext.raw, n+headerSize)
	for left := n; left > 0; {
		if err := r.stream.need(1); err != nil {
			return nil, short(err)
		}
		p := r.stream.take(min(left, r.stream.end-r.stream.pos))
		r.ext.raw = append(r.ext.raw, p...)
		left -= len(p)
	}
	body := r.ext.raw[from : from+n : from+n]
	for len(r.ext.raw)%headerSize != 0 {
		r.ext.raw = append(r.ext.raw, 0)
	}
	return body, nil
}

// parse reads a header as it stands, without what came before it.
func (e *entry) parse(h []byte) error {
	if want, err := octal(h[checksumAt : checksumAt+8]); err != nil || want != sum(h) && want != signedSum(h) {
		return errHeader
	}
	*e = entry{kind: h[kindAt]}
	var err error
	for _, f := range []struct {
		to       *int64
		at, size int
	}{
		{&e.size, sizeAt, 12},
		{&e.mode, modeAt, 8},
		{&e.uid, uidAt, 8},
		{&e.gid, gidAt, 8},
		{&e.sec, timeAt, 12},
	} {
		if *f.to, err = number(h[f.at : f.at+f.size]); err != nil {
			return err
		}
	}
	prefix, err := e.parseMore(h)
	if err != nil {
		return err
	}
	name := field(h[nameAt : nameAt+100])
	if len(prefix) > 0 {
		e.name = string(prefix) + "/" + string(name)
	} else {
		e.name = string(name)
	}
	e.link = string(field(h[linkAt : linkAt+100]))
	if !e.headerOnly() && e.size < 0 {
		return errHeader
	}
	return nil
}

// parseMore reads what only some formats have, and returns the front part of
// a name that was divided.
func (e *entry) parseMore(h []byte) (prefix []byte, err error) {
	magic := string(h[magicAt : magicAt+6])
	ustar, gnu := magic == "ustar\x00", magic == "ustar " && string(h[magicAt+6:magicAt+8]) == " \x00"
	if !ustar && !gnu {
		return nil, nil
	}
	if e.major, err = number(h[majorAt : majorAt+8]); err != nil {
		return nil, err
	}
	if e.minor, err = number(h[minorAt : minorAt+8]); err != nil {
		return nil, err
	}
	prefix = field(h[prefixAt : prefixAt+155])
	switch {
	case ustar && string(h[trailerAt:trailerAt+4]) == "tar\x00":
		prefix = field(h[prefixAt : prefixAt+131])
		for _, at := range []int{476, 488} { // other times
			if _, err := number(h[at : at+12]); err != nil {
				return nil, err
			}
		}
	case gnu && (len(prefix) == 0 || gnuTimes(h) || !isASCII(prefix)):
		// GNU keeps times there. Only where they cannot be times are they a
		// prefix, which some programs have written.
		return nil, nil
	}
	return prefix, nil
}

func gnuTimes(h []byte) bool {
	for _, at := range []int{345, 357} {
		if h[at] == 0 {
			continue
		}
		if _, err := number(h[at : at+12]); err != nil {
			return false
		}
	}
	return true
}

func isASCII(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 })
}

func (e *entry) headerOnly() bool {
	switch e.kind {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return true
	}
	return false
}

// merge takes in what came before the header.
func (e *entry) merge(x *extension) error {
	if len(x.path) > 0 {
		e.name = string(x.path)
	}
	if len(x.link) > 0 {
		e.link = string(x.link)
	}
	if len(x.longName) > 0 {
		e.name = string(x.longName)
	}
	if len(x.longLink) > 0 {
		e.link = string(x.longLink)
	}
	for _, f := range []struct {
		to   *int64
		from []byte
	}{{&e.uid, x.uid}, {&e.gid, x.gid}, {&e.size, x.size}} {
		if len(f.from) == 0 {
			continue
		}
		n, err := decimal(f.from)
		if err != nil {
			return err
		}
		*f.to = n
	}
	if err := e.mergeTimes(x); err != nil {
		return err
	}
	if len(x.xattrs) > 0 {
		e.xattrs = lastOfEach(x.xattrs)
	}
	if e.kind == 0 { // of archives older than types
		e.kind = tar.TypeReg
		if strings.HasSuffix(e.name, "/") {
			e.kind = tar.TypeDir
		}
	}
	if !e.headerOnly() && e.size < 0 {
		return errHeader
	}
	return nil
}

func (e *entry) mergeTimes(x *extension) error {
	for _, other := range [][]byte{x.atime, x.ctime} {
		if len(other) > 0 {
			if _, _, err := moment(other); err != nil {
				return err
			}
		}
	}
	if len(x.mtime) == 0 {
		return nil
	}
	var err error
	e.sec, e.nsec, err = moment(x.mtime)
	return err
}

// lastOfEach sorts xattrs by name. Of several of one name the last counts.
func lastOfEach(xattrs []tree.Xattr) []tree.Xattr {
	slices.SortStableFunc(xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	kept := xattrs[:0]
	for _, x := range xattrs {
		if n := len(kept); n > 0 && kept[n-1].Name == x.Name {
			kept[n-1] = x
		} else {
			kept = append(kept, x)
		}
	}
	return kept
}

// parsePAX reads the records of a PAX header. Of several of one key the last
// counts.
func parsePAX(b []byte) (p pax, err error) {
	holes := 0
	for len(b) > 0 {
		var key, value []byte
		if key, value, b, err = nextRecord(b); err != nil {
			return p, err
		}
		switch k := string(key); k {
		case "path":
			p.path = value
		case "linkpath":
			p.link = value
		case "uid":
			p.uid = value
		case "gid":
			p.gid = value
		case "size":
			p.size = value
		case "mtime":
			p.mtime = value
		case "atime":
			p.atime = value
		case "ctime":
			p.ctime = value
		case "GNU.sparse.offset", "GNU.sparse.numbytes":
			if (holes%2 == 0) != (k == "GNU.sparse.offset") || bytes.IndexByte(value, ',') >= 0 {
				return p, errHeader
			}
			holes++
			p.sparse = true
		default:
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				p.xattrs = append(p.xattrs, tree.Xattr{Name: name, Value: bytes.Clone(value)})
			}
			p.sparse = p.sparse || strings.HasPrefix(k, "GNU.sparse.")
		}
	}
	return p, nil
}

// nextRecord takes a record "length key=value\n" off b.
func nextRecord(b []byte) (key, value, rest []byte, err error) {
	digits, _, ok := bytes.Cut(b, []byte{' '})
	if !ok {
		return nil, nil, nil, errHeader
	}
	n, err := decimal(digits)
	if err != nil || n < 5 || n > int64(len(b)) || n <= int64(len(digits)+1) || b[n-1] != '\n' {
		return nil, nil, nil, errHeader
	}
	key, value, ok = bytes.Cut(b[len(digits)+1:n-1], []byte{'='})
	if !ok || len(key) == 0 {
		return nil, nil, nil, errHeader
	}
	text := key
	switch string(key) {
	case "path", "linkpath", "uname", "gname":
		text = value
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return nil, nil, nil, errHeader
	}
	return key, value, b[n:], nil
}

func (r *reader) fault(err error) error {
	return fmt.Errorf("%s: %w", brief(r.entry.name), err)
}
