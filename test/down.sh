#!/usr/bin/env bash
# Stops what `make up` started: containers, the node, its processes, the registry.
set -euo pipefail
cd "$(dirname "$0")/.."
state=${BERTH_STATE:-/run/berth}
export BERTH_SOCKET=${BERTH_SOCKET:-$state/berth.sock}
running=$(bin/berth ps -q 2>/dev/null || true)
[ -z "$running" ] || bin/berth stop $running
for part in builder node keeper lazy registry; do
	pid=$(cat "$state/$part.pid" 2>/dev/null || true)
	[ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || continue
	kill "$pid"
	for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
	echo "stopped the $part ($pid)"
done
