#!/usr/bin/env bash
# Builds what the tests of the CRI take into .cache/cri, some minutes, once:
# - crictl and critest out of cri-tools' module. critest names one image by a
#   digest that only its makers can make again: in a copy of the module that
#   constant, and nothing else, is changed into the digest of ours;
# - runc with seccomp out of its module: the release that the peers were
#   measured with, as Debian's writes errors nobody can read;
# - busybox out of Debian's source: its own busybox-static lacks ipcs and pgrep,
#   and its shell does not look at /bin/ls where that is masked;
# - actor, which plays the other programs of the images.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD house=$(cd ../.. && pwd)
cache=$house/.cache/cri
tools=v1.36.0 runc=v1.5.2
mkdir -p "$cache"

fetch() { # fetch MODULE VERSION FOLDER: a copy of a module that can be written to
	local from
	from=$(cd "$cache" && GO111MODULE=on GOFLAGS=-mod=mod go mod download -json "$1@$2" | sed -nE 's/^\t"Dir": "(.*)",$/\1/p')
	rm -rf "$3" && cp -r "$from" "$3" && chmod -R u+w "$3"
}

built() { # built PROGRAM SIGN: is it there, made of what SIGN says?
	[ -x "$cache/$1" ] && [ "$(cat "$cache/$1.made" 2>/dev/null)" = "$2" ]
}

digest=$(cat images/digest)
if ! built critest "$tools $digest" || ! built crictl "$tools"; then
	echo "cri: building crictl and critest $tools" >&2
	fetch sigs.k8s.io/cri-tools "$tools" "$cache/cri-tools"
	cd "$cache/cri-tools"
	sed -i -E "s|(testLinuxImageWithDigest .*test-image-digest@)sha256:[0-9a-f]{64}|\1$digest|" pkg/validate/consts.go
	grep -q "$digest" pkg/validate/consts.go
	CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${tools#v}" -o "$cache/crictl" ./cmd/crictl
	CGO_ENABLED=0 go test -mod=readonly -c -trimpath -ldflags "-s -w" -o "$cache/critest" ./cmd/critest
	echo "$tools" > "$cache/crictl.made"
	echo "$tools $digest" > "$cache/critest.made"
	cd "$here" && rm -rf "$cache/cri-tools"
fi

if ! built runc "$runc"; then
	echo "cri: building runc $runc" >&2
	fetch github.com/opencontainers/runc "$runc" "$cache/runc-module"
	cd "$cache/runc-module"
	CGO_ENABLED=1 go build -mod=readonly -trimpath -tags seccomp -ldflags "-s -w -X main.version=${runc#v}" -o "$cache/runc" .
	echo "$runc" > "$cache/runc.made"
	cd "$here" && rm -rf "$cache/runc-module"
fi

# CI has little patience for a compiler: nothing of this is for speed.
busybox() {
	local apt=$cache/apt mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg source
	mirror=$(sed -nE 's/^URIs: (http[^ ]*debian)\/?$/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1)
	rm -rf "$apt" && mkdir -p "$apt"/{lists,archives}/partial "$apt/source"
	echo "deb-src [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} bookworm main" > "$apt/sources.list"
	cat > "$apt/apt.conf" <<-CONF
	Dir::Etc::sourcelist "$apt/sources.list";
	Dir::Etc::sourceparts "-";
	Dir::State::lists "$apt/lists";
	Dir::Cache::archives "$apt/archives";
	Dir::Cache::pkgcache "";
	Dir::Cache::srcpkgcache "";
	APT::Sandbox::User "root";
	CONF
	(cd "$apt/source" && export APT_CONFIG=$apt/apt.conf && apt-get update -qq && apt-get source -qq --download-only busybox)
	source=$cache/busybox-source
	rm -rf "$source" && mkdir "$source"
	tar -xjf "$apt"/source/busybox_*.orig.tar.bz2 -C "$source" --strip-components=1
	cd "$source"
	make -s defconfig >/dev/null
	for option in STATIC:y FEATURE_SH_STANDALONE:n FEATURE_PREFER_APPLETS:n TC:n FEATURE_TC_INGRESS:n; do
		sed -i -E "s/^(# )?CONFIG_${option%:*}(=y| is not set)$/CONFIG_${option%:*}=${option#*:}/" .config
	done
	yes '' 2>/dev/null | make -s oldconfig >/dev/null || true
	make -s -j"$(nproc)" CONFIG_EXTRA_CFLAGS=-w busybox > make.log 2>&1 || { tail -30 make.log >&2; exit 1; }
	cp busybox "$cache/busybox"
	cd "$here" && rm -rf "$source" "$apt"
}
if ! built busybox 1.35.0-1; then
	echo "cri: building busybox of Debian's source" >&2
	busybox
	echo 1.35.0-1 > "$cache/busybox.made"
fi
cd "$house" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$cache/actor" ./test/cri/images/actor
