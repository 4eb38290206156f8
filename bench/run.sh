#!/usr/bin/env bash
# Measures Berth and containerd in one run; see bench/main.go for the flags.
# Builds the peer from its own module where it is missing. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
test/build.sh
peer=$PWD/.cache/peer
mkdir -p "$peer"
build() { # build PROGRAM PACKAGE
	if [ ! -x "$peer/$1" ] || [ -n "$(find bench/peer -newer "$peer/$1" -name '*.go' -print -quit)" ]; then
		echo "bench: building $1" >&2
		(cd bench/peer && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$peer/$1" "$2")
	fi
}
for program in containerd ctr containerd-shim-runc-v2; do
	build "$program" "github.com/containerd/containerd/v2/cmd/$program"
done
build peer .
[ "$peer/pause" -nt bench/pause/pause.c ] || gcc -Os -static -o "$peer/pause" bench/pause/pause.c
test/containerd/clients/build.sh
[ -x .cache/cri/runc ] || test/cri/build.sh
go build -o .cache/peer/bench ./bench
go build -o .cache/peer/store ./bench/store
exec .cache/peer/bench -peer "$peer" -berth "$PWD/bin/berth" "$@"
