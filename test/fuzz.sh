#!/usr/bin/env bash
# Runs every fuzz test for a while (ten seconds, or $1).
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
	for name in $(grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | cut -d' ' -f2); do
		echo "== $dir $name"
		go test -run "^$" -fuzz "^$name\$" -fuzztime "${1:-10s}" -fuzzminimizetime 5x "$dir"
	done
done
