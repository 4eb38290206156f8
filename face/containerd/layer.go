package containerd

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

var chainID = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// layerOf says which layer a committed snapshot of this name and these labels
// is. One that somebody committed under a name of his own is none, whatever
// its labels say. mu is held.
func (s *Snapshots) layerOf(rec *record) (layer, bool) {
	ref := rec.Labels[labelRef]
	named := rec.Name == ref || strings.HasSuffix(rec.Name, "/"+ref)
	if !chainID.MatchString(ref) || !named || rec.Labels[labelUIDMap]+rec.Labels[labelGIDMap] != "" {
		return layer{}, false
	}
	return s.layerOn(rec.parent(), ref)
}

func (s *Snapshots) layerOn(parent name, chain string) (layer, bool) {
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
func (s *Snapshots) index(rec *record) {
	if rec.Kind != snapshot.KindCommitted {
		return
	}
	l, ok := s.layerOf(rec)
	if ok && s.layers[l] == "" {
		s.layers[l] = rec.Store
	}
}

// known returns the snapshot of the store that is the layer, or "". mu is
// held.
func (s *Snapshots) known(l layer) snapshot.Key {
	key := s.layers[l]
	if key != "" && len(s.holders[key]) == 0 {
		delete(s.layers, l)
		return ""
	}
	return key
}
