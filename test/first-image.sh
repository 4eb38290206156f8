#!/usr/bin/env bash
# Writes an image of Debian's busybox-static to stdout, as a docker-archive:
# what the first container runs where there is no internet.
set -euo pipefail
name=${1:-busybox:latest}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
busybox=$(PATH=$PATH:/bin:/usr/bin command -v busybox)

mkdir -p "$work"/rootfs/{bin,etc,dev,proc,sys,tmp,root,usr/bin,var/tmp,var/www}
chmod 1777 "$work/rootfs/tmp" "$work/rootfs/var/tmp"
cp -L "$busybox" "$work/rootfs/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$work/rootfs/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$work/rootfs/etc/passwd"
printf 'root:x:0:\nwww:x:33:\nnogroup:x:65534:\n' > "$work/rootfs/etc/group"
echo '<h1>Berth is serving.</h1>' > "$work/rootfs/var/www/index.html"

tar -C "$work/rootfs" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1700000000 -cf "$work/layer.tar" .
diff=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
cat > "$work/config" <<JSON
{"architecture":"$(go env GOARCH)","os":"linux","created":"2023-11-14T22:13:20Z","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]},"history":[{"created":"2023-11-14T22:13:20Z","created_by":"busybox-static of Debian"}]}
JSON
config=$(sha256sum "$work/config" | cut -d' ' -f1)
mv "$work/config" "$work/$config.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$config" "$name" > "$work/manifest.json"
tar -C "$work" -cf - manifest.json "$config.json" layer.tar
