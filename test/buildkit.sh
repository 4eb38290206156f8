#!/usr/bin/env bash
# Builds BuildKit out of its module and puts it beside berth, for `berth
# build`: `make buildkit`. That takes a minute or two, once.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=.cache/clients/bin
mkdir -p "$programs" bin
for program in buildkitd buildctl; do
	if [ ! -x "$programs/$program" ] || [ test/containerd/clients/go.mod -nt "$programs/$program" ]; then
		echo "buildkit: building $program" >&2
		(cd test/containerd/clients && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$OLDPWD/$programs/$program" "github.com/moby/buildkit/cmd/$program")
	fi
	ln -sfn "../$programs/$program" "bin/$program"
done
