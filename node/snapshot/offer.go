package snapshot

// What follows is the data of what a driver may offer beyond Store. Who uses
// an offer declares its interface; see those of node/image.

// Share is what a group of chains takes of the disk, in bytes. The two parts
// together are what it would take alone.
type Share struct {
	// Shared is what other groups need too.
	Shared int64 `json:"shared"`
	// Own is what would be given back if just this group were removed.
	Own int64 `json:"own"`
}

// Totals is all that a store takes of the disk, each byte once, counted in
// blocks as the file system does.
type Totals struct {
	// Objects is the bodies of files, kept once each; ObjectCount says how many.
	Objects     int64 `json:"objects"`
	ObjectCount int64 `json:"objectCount"`
	// Metadata is the trees of layers and chains, and what is needed to write
	// a layer's tar again.
	Metadata int64 `json:"metadata"`
	// Layers is committed layers that are kept as folders.
	Layers int64 `json:"layers"`
	// Uppers is the folders of Active snapshots.
	Uppers int64 `json:"uppers"`
	// Inodes and UpperInodes are how many files and folders that is: those of
	// Active snapshots are only in the second.
	Inodes      int64 `json:"inodes"`
	UpperInodes int64 `json:"upperInodes"`
}

// Part is a kind of thing that a store keeps.
type Part string

// The parts that a scrub tells apart.
const (
	PartObject   Part = "object"
	PartMetadata Part = "metadata"
	PartLayer    Part = "layer" // a layer as a whole: lost, or without what its tar is made from
)

// Checked is one thing that a scrub has looked at.
type Checked struct {
	Part Part
	Name string // the object's digest, the file's name, the layer's key
	Size int64  // bytes that were read
	// Place is where a later scrub goes on behind this one. Places grow.
	Place string
	// Damage says what is wrong; "" where all is well.
	Damage string
	// Healed says how the store has repaired it by itself; "" where it has not.
	Healed string
	// Keys are the committed layers that hold what is damaged, where that is
	// known: the tar of any of them has what is needed to heal it.
	Keys []Key
}

// Labels of a Committed layer that was unpacked from an image and lies under
// its chain ID: what was verified of it.
const (
	LayerSize = "berth.layer" // bytes of its files
	LayerTar  = "berth.tar"   // length of its tar
	LayerDiff = "berth.diff"  // digest of its tar
	LayerBlob = "berth.blob"  // digest of the blob that it came in
)
