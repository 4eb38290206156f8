#!/usr/bin/env bash
# Builds a whole Kubernetes out of its modules into .cache/kubelet: etcd, the
# control plane, kubelet and kubectl. That takes a quarter of an hour, once, and
# some gigabytes of memory; nothing in `make test` needs it.
set -euo pipefail
cd "$(dirname "$0")"
programs=$(cd ../.. && pwd)/.cache/kubelet
mkdir -p "$programs"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
set=k8s.io/component-base/version
flags="-s -w -X $set.gitVersion=$version -X $set.gitMajor=1 -X $set.gitMinor=$(echo "$version" | cut -d. -f2)"
build() { # build PROGRAM PACKAGE
	[ -x "$programs/$1" ] && [ ! go.mod -nt "$programs/$1" ] && return
	echo "kubelet: building $1" >&2
	CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$programs/$1" "$2"
}
build etcd go.etcd.io/etcd/server/v3
for program in kubelet kubectl kubeadm kube-apiserver kube-controller-manager kube-scheduler; do
	build $program k8s.io/kubernetes/cmd/$program
done
