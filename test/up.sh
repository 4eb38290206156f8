#!/usr/bin/env bash
# Starts Berth with embedded defaults and runs a first container from an
# image that went through a real registry: `make up`.
set -euo pipefail
cd "$(dirname "$0")/.."
state=${BERTH_STATE:-/run/berth}
export BERTH_STATE=$state BERTH_SOCKET=${BERTH_SOCKET:-$state/berth.sock}
registry=${BERTH_FIRST_REGISTRY:-127.0.0.1:5000}
berth=$PWD/bin/berth
image=$registry/busybox:latest

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
wait_for() { # wait_for WHAT COMMAND…
	local what=$1; shift
	for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
	echo "make up: $what did not come up; see $state/up.log" >&2; exit 1
}

mkdir -p "$state"
if "$berth" version >/dev/null 2>&1 && "$berth" info >/dev/null 2>&1; then
	say "Berth is running already ($BERTH_SOCKET)"
else
	say "Starting Berth: $berth up"
	setsid "$berth" up </dev/null >>"$state/up.log" 2>&1 &
	wait_for Berth "$berth" info
	tail -n 20 "$state/up.log"
fi

if ! curl -sf "http://$registry/v2/" >/dev/null 2>&1 && ! wget -qO- "http://$registry/v2/" >/dev/null 2>&1; then
	say "Starting a registry on $registry: $berth registry"
	setsid "$berth" registry --addr "$registry" </dev/null >>"$state/registry.log" 2>&1 &
	echo $! > "$state/registry.pid"
	wait_for "the registry" bash -c "</dev/tcp/${registry%:*}/${registry##*:}"
fi

say "Building a first image of Debian's busybox, pushing it and pulling it back"
test/first-image.sh "$image" | "$berth" load
"$berth" push "$image"
"$berth" rmi "$image" >/dev/null
"$berth" pull "$image"

say "Running it: berth run --rm $image echo …"
"$berth" run --rm "$image" echo "Hello from a container on Berth."

cat <<TXT

Berth is up. Try next (bin/berth, or put it in your PATH):

  bin/berth run -it --rm $image                     a shell in a container
  bin/berth run -d --name web -p 8080:80 $image httpd -f -h /var/www
  curl http://localhost:8080/                       what it serves
  bin/berth ps; bin/berth logs web; bin/berth stats --no-stream
  bin/berth exec -it web sh
  bin/berth rm -f web
  make buildkit; bin/berth build -t app .           an image of your own, from a Dockerfile
  make down                                         stop Berth; containers are stopped too
TXT
