#!/usr/bin/env bash
# Builds nerdctl and BuildKit out of their modules, and containerd with its
# command line and shim out of bench/peer, and puts them side by side into
# .cache/clients/bin. That takes some minutes, once.
set -euo pipefail
cd "$(dirname "$0")"
house=$(cd ../../.. && pwd)
programs=$house/.cache/clients/bin peers=$house/.cache/peer
mkdir -p "$programs" "$peers"
build() { # build FOLDER/PROGRAM PACKAGE: with the go.mod that is in the current folder
	[ -x "$1" ] && [ ! go.mod -nt "$1" ] && return
	echo "clients: building ${1##*/}" >&2
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w ${*:3}" -o "$1" "$2"
}
build "$programs/nerdctl" github.com/containerd/nerdctl/v2/cmd/nerdctl
build "$programs/buildkitd" github.com/moby/buildkit/cmd/buildkitd
build "$programs/buildctl" github.com/moby/buildkit/cmd/buildctl
cd "$house/bench/peer"
for program in containerd ctr containerd-shim-runc-v2; do
	build "$peers/$program" "github.com/containerd/containerd/v2/cmd/$program"
	ln -sfn "../../peer/$program" "$programs/$program"
done
