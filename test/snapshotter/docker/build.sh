#!/usr/bin/env bash
# Builds Docker's engine, its command line, buildx and a runc that this engine
# takes, out of their modules, into .cache/docker. That takes some minutes, once.
set -euo pipefail
cd "$(dirname "$0")"
programs=$(cd ../../.. && pwd)/.cache/docker
mkdir -p "$programs"
build() { # build PROGRAM PACKAGE [FLAG]...
	[ -x "$programs/$1" ] && [ ! go.mod -nt "$programs/$1" ] && return
	echo "docker: building $1" >&2
	go build -trimpath -ldflags '-s -w' "${@:3}" -o "$programs/$1" "$2"
}
CGO_ENABLED=0 build dockerd github.com/moby/moby/v2/cmd/dockerd
# Its module names no version of Go, and would be taken for a very old one.
CGO_ENABLED=0 build docker github.com/docker/cli/cmd/docker '-gcflags=github.com/docker/cli/...=-lang=go1.26'
CGO_ENABLED=0 build docker-buildx github.com/docker/buildx/cmd/buildx
CGO_ENABLED=1 build runc github.com/opencontainers/runc # it begins in C
