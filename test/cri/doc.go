// Package cri runs Kubernetes' own clients of container runtimes on Berth:
// critest, its conformance suite, and crictl, with images of ours in a registry
// that mirrors those they name. build.sh makes the programs.
//
// All runs on a machine of its own (test/machine): host ports, CNI's
// configuration and NRI's socket disturb nobody.
package cri
