#!/usr/bin/env bash
# Runs the tests that containerd has for its client, integration/client of its
# module, on Berth or (with "containerd" as first word) on containerd itself,
# and prints how many pass. Further words go to the test binary:
#   test/containerd/integration.sh berth -test.run 'TestContainer.*'
set -euo pipefail
cd "$(dirname "$0")/../.."
engine=${1:-berth}
shift || true
test/containerd/clients/build.sh
source=$(go list -m -f '{{.Dir}}' github.com/containerd/containerd/v2)
mkdir -p .cache/clients/integration/bin
CGO_ENABLED=0 go build -o .cache/clients/integration/bin/containerd ./test/containerd/wrapper
CLIENTS_ENGINE=$engine CLIENTS_SUITE=$source CLIENTS_SUITE_ARGS="$*" \
	go test -count=1 -timeout 30m -run TestIntegrationSuite -v ./test/containerd
