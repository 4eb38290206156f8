#!/usr/bin/env bash
# Gets what the guests need and this machine lacks:
# - QEMU 10 of bookworm-backports; bookworm's 7.2 lets 6.12 kernels crash now
#   and then under software emulation;
# - Debian's cloud kernels, 6.1 of bookworm and 6.12 of its backports, unpacked
#   into .cache/vm/<series>/ without installing them: vmlinuz, kernel/ (plain
#   .ko files), modules.dep;
# - AppArmor's parser and what profiles include, in .cache/vm/apparmor/.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=$PWD/.cache/vm
mirror=$(sed -nE 's/^URIs: (http[^ ]*debian)\/?$/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1)
mirror=${mirror:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

apt_of() { # apt_of SUITE…: package lists of their own, the machine's sources untouched
	apt=$cache/apt
	rm -rf "$apt" && mkdir -p "$apt"/{lists,archives}/partial
	for suite in "$@"; do
		echo "deb [signed-by=$keyring] $mirror $suite main"
	done > "$apt/sources.list"
	cat > "$apt/apt.conf" <<-CONF
	Dir::Etc::sourcelist "$apt/sources.list";
	Dir::Etc::sourceparts "-";
	Dir::State::lists "$apt/lists";
	Dir::Cache::archives "$apt/archives";
	Dir::Cache::pkgcache "";
	Dir::Cache::srcpkgcache "";
	APT::Sandbox::User "root";
	CONF
	export APT_CONFIG=$apt/apt.conf
	apt-get update -qq
}

qemu() {
	local have
	have=$(qemu-system-x86_64 --version 2>/dev/null | sed -nE 's/.*version ([0-9]+)\..*/\1/p')
	[ "${have:-0}" -ge 8 ] && return
	echo "vm: installing QEMU from bookworm-backports" >&2
	apt_of bookworm bookworm-backports
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -t bookworm-backports qemu-system-x86 >/dev/null
}

kernel() { # kernel SERIES SUITE
	local series=$1 suite=$2 package lib
	[ -e "$cache/$series/modules.dep" ] && return
	echo "vm: fetching a $series kernel from $suite" >&2
	apt_of "$suite"
	package=$(apt-cache show linux-image-cloud-amd64 | sed -nE 's/^Depends: (linux-image-[^ ,]*).*/\1/p' | head -1)
	(cd "$apt" && apt-get download -qq "$package")
	dpkg -x "$apt"/"$package"_*.deb "$apt/root"
	rm -rf "$cache/$series.new" && mkdir -p "$cache/$series.new"
	cp "$apt"/root/boot/vmlinuz-* "$cache/$series.new/vmlinuz"
	lib=$(echo "$apt"/root/lib/modules/*)
	find "$lib" -name '*.ko.xz' -print0 | xargs -0 -r xz -d
	/sbin/depmod -b "$apt/root" "$(basename "$lib")"
	cp -r "$lib/kernel" "$lib/modules.dep" "$cache/$series.new/"
	mv "$cache/$series.new" "$cache/$series"
}

apparmor() {
	[ -e "$cache/apparmor/usr/share/apparmor-features" ] && return
	echo "vm: fetching AppArmor's parser" >&2
	apt_of bookworm
	(cd "$apt" && apt-get download -qq apparmor)
	dpkg -x "$apt"/apparmor_*.deb "$apt/apparmor"
	rm -rf "$cache/apparmor" && mkdir -p "$cache/apparmor/etc" "$cache/apparmor/sbin"
	cp -r "$apt"/apparmor/etc/apparmor "$cache/apparmor/etc/"
	mkdir -p "$cache/apparmor/etc/apparmor.d" "$cache/apparmor/usr/share"
	cp -r "$apt"/apparmor/usr/share/apparmor-features "$cache/apparmor/usr/share/"
	cp -r "$apt"/apparmor/etc/apparmor.d/{abi,abstractions,tunables} "$cache/apparmor/etc/apparmor.d/"
	find "$cache/apparmor/etc" -type d -empty -exec touch {}/empty \; # guests get folders by what is in them
	cp "$(find "$apt/apparmor" -name apparmor_parser -type f)" "$cache/apparmor/sbin/"
}

mkdir -p "$cache"
qemu
kernel 6.1 bookworm
kernel 6.12 bookworm-backports
apparmor
rm -rf "$cache/apt"
