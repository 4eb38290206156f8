// Package snapshotter tries berth snapshotter with those it is for: the suite
// that containerd has for its snapshotters, over the socket; a containerd with
// its own command line, containers, garbage collection and kills in the middle;
// and Docker's engine, which keeps its images in that containerd.
package snapshotter
