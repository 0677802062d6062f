.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/vouchd/vouchd/packaging/version.release=$(VERSION)
TOOLS    := gcc libc6-dev swtpm swtpm-tools tpm2-tools postgresql-15 openssh-client openssh-server \
            curl git nginx-light nodejs openssl procps python3 python3-dotenv python3-redis redis-server systemd
FUZZTIME ?= 30s

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sort | expand -t 16

build: ## build both programs into bin/
	@[ -x bin/vouchd ] || echo 'building vouchd and vouch; the first time, a few minutes'
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/vouchd ./cmd/vouch

demo: build ## the whole way, from a TPM to two agents that trust each other
	./examples/demo/run

test: test-tools ## run all tests, with the race detector
	$(GO) test -race -timeout 20m ./...

test-tools: ## install from Debian what the tests need
	@packaging/install-missing $(TOOLS)
	@command -v kubectl >/dev/null || packaging/install-missing kubernetes-client
	@command -v npm >/dev/null || packaging/install-missing npm

test-vault: ## check the vault broker against the Vault or OpenBao at VAULT_ADDR, with VAULT_TOKEN
	$(GO) test -tags vaultsuite -count 1 -v -run TestRealServer ./credential/vault ./identity/vaultca

test-spire: test-tools ## run SPIRE hosts, two of them machines of their own, on the spire-server and spire-agent in SPIRE_BIN, >= 1.14
	SPIRE_BIN='$(abspath $(SPIRE_BIN))' $(GO) test -tags spiresuite -count 1 -v -timeout 20m -run Real -bench Real ./identity/spire ./cmd/vouchd/daemon
	@packaging/install-missing gcc libc6-dev mmdebstrap systemd-container procps swtpm swtpm-tools
	@SPIRE_BIN='$(abspath $(SPIRE_BIN))' packaging/test/fleet

test-clients: test-tools ## run real clients against the daemon: of Python, Node, Java, Go, tools; asks registries
	@packaging/install-missing python3-grpcio protobuf-compiler python3-httpx python3-requests gh curl awscli python3-botocore
	@packaging/install-missing fcgiwrap python3-boto3 slowhttptest python3-aiohttp python3-pip cargo-web
	@packaging/install-missing python3-psycopg2 python3-redis libpostgresql-jdbc-java
	@command -v docker >/dev/null || packaging/install-missing docker.io
	@command -v javac >/dev/null || packaging/install-missing default-jdk-headless
	$(GO) test -tags clients -count 1 -timeout 30m -run 'TestExampleClients|TestProxyClients|TestRealTools|TestJava' ./cmd/vouch
	$(GO) test -tags clients -count 1 -run TestOtherParsers ./credential/dotenv
	$(GO) test -tags clients -count 1 -run TestJava ./cmd/vouch/loopback

test-ui: ## look at the page of vouch ui with Chromium: keyboard, screen reader, contrast; takes docs/ui
	@packaging/install-missing chromium
	$(GO) test -tags ui -count 1 -timeout 10m ./cmd/vouch/ui -screenshots "$(CURDIR)/docs/ui"

check: ## what must hold before a commit: formatting, vet, staticcheck, a tidy go.mod
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(GO) tool staticcheck ./...

bench: test-tools ## measure; docs/performance.md says what
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-proxy: test-tools ## compare calls by the proxy with other ways to the upstream, in one run
	$(GO) test -run '^$$' -bench BenchmarkProxy -benchtime 3s -timeout 60m ./cmd/vouchd

fuzz: ## fuzz every parser of outside data, FUZZTIME each
	@packaging/fuzz-all $(FUZZTIME)

package: ## build the deb and rpm packages for amd64 and arm64 into dist/
	@packaging/package

package-check: package ## hold the packages to lintian, rpmlint, reproducibility and the unit's exposure
	@packaging/install-missing lintian rpmlint rpm man-db systemd procps apparmor
	@packaging/check

system-test: build ## what needs systemd as PID 1, in a container: tests of units, and the package from install to purge
	@packaging/install-missing gcc libc6-dev mmdebstrap systemd-container procps swtpm swtpm-tools postgresql-15
	@packaging/test/units
	@packaging/test/system
	@packaging/test/upgrade
	@packaging/test/secrets
	@packaging/test/examples
	@packaging/test/sandbox
	@examples/sandbox/run

user-test: ## what peers are, and the attacks on that, tried as an ordinary user
	@packaging/install-missing gcc libc6-dev
	@packaging/test/user

vm-test: ## the same on a virtual machine with a TPM, with Secure Boot and without
	@packaging/install-missing gcc libc6-dev mmdebstrap swtpm swtpm-tools qemu-system-x86 qemu-utils ovmf \
		systemd-boot-efi sbsigntool binutils mtools fdisk openssh-client
	@packaging/test/vm

release: ## build, check and sign the packages of a tag with MINISIGN_KEY
	@packaging/install-missing lintian rpmlint rpm man-db systemd procps apparmor minisign
	@packaging/release

repo: package ## make repositories for apt and dnf of the packages, signed with REPO_KEY
	@packaging/install-missing reprepro createrepo-c rpm gnupg
	@packaging/repo

repo-test: package ## what apt and dnf make of signed repositories, and of changed ones
	@packaging/install-missing reprepro createrepo-c rpm gnupg dnf
	@packaging/test/repositories

vuln: ## look for known vulnerabilities; asks vuln.go.dev
	@packaging/vuln

.PHONY: help build demo test test-spire test-vault test-clients test-tools test-ui check bench bench-proxy fuzz package package-check system-test user-test vm-test release repo repo-test vuln
