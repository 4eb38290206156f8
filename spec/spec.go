// Package spec holds the data that cluster, node, faces and client agree on:
// what a container, image, network or volume is asked to be, and how it
// fares. It has no behaviour beyond reading itself; its JSON is the wire
// form of the REST API. Sizes are bytes, times RFC 3339, durations
// nanoseconds unless a comment says otherwise.
package spec
