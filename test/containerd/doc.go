// Package containerd tries the containerd door with the programs that people
// use it by, as their makers released them: ctr, nerdctl, BuildKit and Docker's
// engine. What they say and do is wanted to be what it is on containerd itself,
// and to prove that every test here runs on containerd too:
//
//	CLIENTS_ENGINE=containerd go test ./test/containerd
//
// The tests have a machine of their own (test/machine), so that bridges, rules of
// the firewall and the folders such programs share by their fixed names are
// nobody else's.
package containerd
