#!/usr/bin/env bash
# Builds bin/berth: one static program.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(git describe --tags --always --dirty 2>/dev/null || echo devel)
commit=$(git rev-parse HEAD 2>/dev/null || true)
CGO_ENABLED=0 go build -trimpath \
	-ldflags "-s -w -X berth/cli.version=$version -X berth/cli.commit=$commit" \
	-o bin/berth ./cmd/berth
