package snapshot

// Missing is a label of a Committed layer of which bodies are not here yet. A
// driver that has such layers mounts them with what brings a body when it is
// wanted. Whoever committed the layer says in the value where they come from,
// and takes the label away when all are here.
const Missing = "berth.missing"
