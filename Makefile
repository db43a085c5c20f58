# One target a line below; `make` alone lists them.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
CACHE   ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hallmark
LDFLAGS  = -s -w -X github.com/hallmark-ca/hallmark/cmd/internal/cli.version=$(VERSION)
# The race detector needs a C compiler.
RACE     = $(if $(shell command -v cc || command -v gcc || command -v clang),-race)
# For .ci/run: -v.
GOTESTFLAGS ?=
LINT     = $(CACHE)/tools/golangci-lint-2.15.0/golangci-lint

# Where distributions put SoftHSM, the token of the tests.
SOFTHSM = $(firstword $(wildcard /usr/lib/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so /usr/lib/pkcs11/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so))

.PHONY: help softhsm build build-pkcs11 test unit e2e demo tools lint generate bench fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

build: ## build bin/hallmark, static
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/hallmark ./cmd/hallmark

build-pkcs11: ## build bin/hallmark-pkcs11, for roots in a token or HSM (needs a C compiler)
	CGO_ENABLED=1 go build -trimpath -tags netgo,osusergo -ldflags '$(LDFLAGS)' -o bin/hallmark-pkcs11 ./cmd/hallmark

test: unit e2e ## everything: unit tests, race detector, real systems

# Installed where it is missing and can be; without it the tests of tokens are
# skipped, and under CI=true they fail.
softhsm:
	@if [ -z "$(SOFTHSM)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing softhsm2"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq softhsm2; fi

unit: softhsm ## tests of the product alone, with the race detector (a minute or two)
	go vet ./...
	go test $(RACE) -timeout 15m $(GOTESTFLAGS) $$(go list ./... | grep -v '/ca/ceremony$$')
	go test -timeout 15m $(GOTESTFLAGS) ./ca/ceremony # it seals keys all the time, and has no goroutine

e2e: ## tests against a real API server, Envoy and registry (gets them first)
	cd test && go run ./tools/get
	cd test && go vet ./... && go test -timeout 40m $(GOTESTFLAGS) ./...

demo: ## see it work, start to end (KEEP=1 leaves it running)
	cd test && go run ./tools/get -demo
	cd test && go run ./demo $(if $(KEEP),-keep)

tools: ## get every tool that tests and demo need
	cd test && go run ./tools/get

lint: $(LINT) ## run the linters on both modules
	$(LINT) run ./...
	cd test && $(LINT) run --config ../.golangci.yml ./...

$(LINT):
	GOBIN=$(dir $@) CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

generate: ## rewrite what is generated from the code (docs, comments, module list)
	go run ./cmd/internal/generate

bench: ## run the benchmarks (docs/performance.md says what of)
	go test -run '^$$' -bench . -benchmem ./...

fuzz: ## run each fuzz target for FUZZTIME (default 30s)
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | grep -v '^./test/' | xargs -n1 dirname | sort -u); do \
	  for name in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "== $$pkg $$name"; go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(or $(FUZZTIME),30s) -fuzzminimizetime 10x $$pkg; \
	  done; done

clean: ## remove what was built here (not the cache of tools)
	rm -rf bin dist
