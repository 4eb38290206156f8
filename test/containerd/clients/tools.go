//go:build tools

// Package clients names programs that people use with containerd, for build.sh.
// It is a module of its own, so that Berth's go.mod stays free of them.
package clients

import (
	_ "github.com/containerd/nerdctl/v2/cmd/nerdctl"
	_ "github.com/moby/buildkit/cmd/buildctl"
	_ "github.com/moby/buildkit/cmd/buildkitd"
)
