//go:build tools

// Package docker names the programs that make up Docker, for build.sh. It is a
// module of its own, so that Berth's go.mod stays free of them.
package docker

import (
	_ "github.com/docker/buildx/cmd/buildx"
	_ "github.com/docker/cli/cmd/docker"
	_ "github.com/moby/moby/v2/cmd/dockerd"
	_ "github.com/opencontainers/runc"
)
