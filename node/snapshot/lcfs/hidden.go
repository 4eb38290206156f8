package lcfs

import (
	"encoding/hex"
	"os"
	"slices"

	"berth/base/errs"
	"berth/image/tree"
)

// hexDigest is a digest as records spell it.
type hexDigest tree.Digest

// MarshalText writes it in hex.
func (d hexDigest) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, d[:]), nil
}

// UnmarshalText reads it.
func (d *hexDigest) UnmarshalText(text []byte) error {
	if n, err := hex.Decode(d[:], text); err != nil || n != len(d) {
		return errs.New(errs.Invalid, "digest %.80q", text)
	}
	return nil
}

func hexDigests(all []tree.Digest) []hexDigest {
	var list []hexDigest
	for _, d := range all {
		list = append(list, hexDigest(d))
	}
	return list
}

func (r *record) hidden() []tree.Digest {
	var list []tree.Digest
	for _, d := range r.Hidden {
		list = append(list, tree.Digest(d))
	}
	return list
}

// maxHidden bounds what a record names. A tar that has more files more than
// once cannot be written again.
const maxHidden = 512

// boundHidden gives up a recipe that needs too many bodies that no tree names.
func (in *ingest) boundHidden() {
	if len(in.hidden) <= maxHidden {
		return
	}
	_ = os.Remove(in.recipe)
	in.recipe = ""
	in.excess, in.hidden = in.hidden, nil
}

// markHidden marks in named those candidates that only recipes name.
func (s *Store) markHidden(candidates []tree.Digest, named []bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, rec := range s.byKey {
		for _, d := range rec.Hidden {
			if at, found := slices.BinarySearchFunc(candidates, tree.Digest(d), tree.Digest.Compare); found {
				named[at] = true
			}
		}
	}
}
