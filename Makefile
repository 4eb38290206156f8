# Each target is one line; `make help` lists them.
SHELL := /bin/bash -euo pipefail
GO    ?= go
TOOLS := $(CURDIR)/.cache/bin
export PATH := $(TOOLS):$(CURDIR)/bin:/usr/sbin:/sbin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup build up buildkit down test vet lint unit script vm fuzz bench clean

help:    ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | column -t -s$$'\t'
setup:   ## install what building, running and testing need and is missing (Debian)
	@test/setup.sh
build: setup ## build bin/berth
	@test/build.sh
up:      ## start Berth with embedded defaults and run a first container
	@test/setup.sh run && test/build.sh && test/up.sh
buildkit: ## build BuildKit beside berth, for berth build
	@test/buildkit.sh
down:    ## stop what `make up` started
	@test/down.sh
test:    ## everything that CI checks; goes on after a failure, to name them all
	@$(MAKE) --no-print-directory --keep-going build vet lint unit script vm
vet:     ## go vet
	$(GO) vet ./...
lint: setup ## the linter set
	golangci-lint run ./...
unit: setup ## unit tests and suites, with the race detector
	$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v '^berth/\(test\|bench\)')
script: build ## the command line and the faults, end to end
	$(GO) test -count=1 -timeout 25m $$($(GO) list ./test/... | grep -v /vm)
vm: build ## tests on other kernels: cgroup v2, other rungs of storage, reboot, power cut
	$(GO) test -count=1 -timeout 40m ./test/vm
fuzz:    ## every fuzz test for ten seconds
	@test/fuzz.sh
bench: build ## us and containerd in one run; prints the table of bench/RESULTS.md
	@bench/run.sh
clean:   ## remove what was built
	rm -rf bin .cache
