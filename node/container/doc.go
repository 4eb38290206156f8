// Package container holds the containers of one node: it makes them, starts
// and ends them, watches over them and takes them away whole.
//
// Set is the door to all of it. A container is found by a reference: its name,
// its full id, or a part of the id that only one has.
package container
