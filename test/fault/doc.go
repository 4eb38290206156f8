// Package fault tries the whole program, the way people run it, with bad
// input, full disks, misbehaving registries and processes killed at every
// step. After each of them the node still serves, says what is the matter,
// and nothing is left on the machine: the tests compare before and after.
package fault
