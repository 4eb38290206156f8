#!/usr/bin/env bash
# Runs a whole Kubernetes on Berth: a node goes Ready, a Deployment with probes
# rolls, people's commands work. Not in `make test`: it takes build.sh's time.
set -euo pipefail
cd "$(dirname "$0")/../.."
test/cri/build.sh
test/kubelet/build.sh
KUBELET=1 exec go test -count=1 -timeout 45m -v -run TestKubelet ./test/cri "$@"
