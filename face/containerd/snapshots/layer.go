package snapshots

import (
	"regexp"
	"strings"

	"berth/node/snapshot"
)

// Labels that containerd hands on to a snapshotter.
const (
	labelRef    = "containerd.io/snapshot.ref"        // on Prepare: the chain ID of the layer to be unpacked
	labelUIDMap = "containerd.io/snapshot/uidmapping" // owners differ from the image's
	labelGIDMap = "containerd.io/snapshot/gidmapping"
)

// layer is what an image says of a committed snapshot: its chain ID, which
// names it and all below it, and on which snapshot of the store it stands, as
// a second thought on the first.
type layer struct {
	chain  string
	parent snapshot.Key
}

var (
	chainID = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	// unpackName is how containerd names an active snapshot into which it
	// unpacks a layer; older parts of it leave the label out.
	unpackName = regexp.MustCompile(`(?:^|/)extract-\S+ (sha256:[0-9a-f]{64})$`)
)

// chainOf says which layer of an image a snapshot becomes that was active and
// is committed now, or "". What somebody commits under a name of his own is
// none, whatever its labels say.
func chainOf(active, committed *record) string {
	chain := committed.Labels[labelRef]
	if found := unpackName.FindStringSubmatch(active.Name); chain == "" && found != nil {
		chain = found[1]
	}
	named := committed.Name == chain || strings.HasSuffix(committed.Name, "/"+chain)
	if !chainID.MatchString(chain) || !named || active.shifted() || committed.shifted() {
		return ""
	}
	return chain
}

// layer is the chain ID of the layer that a client unpacks into the snapshot,
// by what it says itself; "" for none.
func (r *record) layer() snapshot.Key {
	chain := r.Labels[labelRef]
	if found := unpackName.FindStringSubmatch(r.Name); chain == "" && found != nil {
		chain = found[1]
	}
	if !chainID.MatchString(chain) || r.shifted() {
		return ""
	}
	return snapshot.Key(chain)
}

// unpacking says whether containerd itself unpacks a layer into the snapshot.
func (r *record) unpacking() bool { return unpackName.MatchString(r.Name) }

// shifted says whether the owners in a snapshot differ from the image's.
func (r *record) shifted() bool { return r.Labels[labelUIDMap]+r.Labels[labelGIDMap] != "" }

// layerOf says which layer a committed snapshot is. mu is held.
func (s *Service) layerOf(rec *record) (layer, bool) {
	if rec.Chain == "" {
		return layer{}, false
	}
	return s.layerOn(rec.parent(), rec.Chain)
}

func (s *Service) layerOn(parent name, chain string) (layer, bool) {
	if parent.name == "" {
		return layer{chain: chain}, true
	}
	below, err := s.find(parent)
	if err != nil {
		return layer{}, false
	}
	return layer{chain, below.Store}, true
}

// index remembers a committed snapshot as the layer it is. mu is held.
func (s *Service) index(rec *record) {
	if l, ok := s.layerOf(rec); ok && s.layers[l] == "" {
		s.layers[l] = rec.Store
	}
}
