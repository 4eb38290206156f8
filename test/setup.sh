#!/usr/bin/env bash
# Installs what building, running and testing Berth need and this Debian
# machine lacks, and says so. Running it again costs nothing.
#   test/setup.sh run     what `make up` needs
#   test/setup.sh test    and what the whole suite needs (the default)
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-test}

say() { printf 'setup: %s\n' "$*" >&2; }

command -v go >/dev/null || { say "Go is missing: install Go 1.26 or newer (https://go.dev/dl)"; exit 1; }

root() { # run as root, if need be by sudo
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

packages=()
need() { # need PROGRAM PACKAGE
	PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || packages+=("$2")
}
need runc runc
need crun crun
need busybox busybox-static
need tini tini
need ip iproute2
if [ "$want" = test ]; then
	need nft nftables
	need curl curl
	need zstd zstd
	need setfattr attr
	need setcap libcap2-bin
	need setfacl acl
	need mkfs.ext4 e2fsprogs
	need cpio cpio
	need depmod kmod
	need xz xz-utils
	need runsc runsc
	need gcc gcc
	need make make
	need bzip2 bzip2
	need pkg-config pkg-config
	need ipcmk util-linux
	[ -e /usr/include/seccomp.h ] || packages+=(libseccomp-dev)
	[ -e /usr/include/stdlib.h ] || packages+=(libc6-dev)
	need e2fsck e2fsprogs
	need fsck.erofs erofs-utils
	need mkfs.btrfs btrfs-progs
	need mkfs.xfs xfsprogs
	need iptables iptables
	need criu criu
	need script bsdutils
	[ -x /usr/lib/cni/bridge ] || packages+=(containernetworking-plugins)
fi
if [ ${#packages[@]} -gt 0 ]; then
	say "installing ${packages[*]}"
	root apt-get update -qq
	root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

getent group berth >/dev/null || { say "adding the group berth: its members may use Berth's socket"; root groupadd --system berth; }

# Debian's crun 1.8 refuses a machine where some controllers are on cgroup v1
# and hugetlb is not mounted there.
if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && grep -q '^hugetlb' /proc/cgroups && ! grep -q 'cgroup.*hugetlb' /proc/mounts; then
	say "mounting the hugetlb cgroup, which crun asks for"
	root mkdir -p /sys/fs/cgroup/hugetlb
	root mount -t cgroup -o hugetlb hugetlb /sys/fs/cgroup/hugetlb
fi

if [ "$want" = test ]; then
	root test/vm/setup.sh
	lint=v2.15.0
	if ! .cache/bin/golangci-lint version 2>/dev/null | grep -q "${lint#v}"; then
		say "building golangci-lint $lint (some minutes, once)"
		GOBIN=$PWD/.cache/bin go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$lint"
	fi
	test/snapshotter/docker/build.sh
	test/containerd/clients/build.sh
	test/cri/build.sh
fi
