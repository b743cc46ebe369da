# What a person who works on Holdfast types. CI runs .ci/run, which uses the same commands.

GOLANGCI_LINT = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.DEFAULT_GOAL := help
.PHONY: help run cluster build test race e2e browser lint fmt bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## run a node on 127.0.0.1:8787 with its data in ./holdfast-data
	go run ./cmd/node

cluster: ## run three nodes on loopback that form a cluster, with their data in ./holdfast-cluster
	sh scripts/cluster.sh

build: ## build bin/holdfast
	CGO_ENABLED=0 go build -trimpath -o bin/holdfast ./cmd/node

test: ## run the fast tests
	go test ./...

race: ## run the fast tests with the race detector
	go test -race ./...

e2e: ## run the built binary as a process: crashes, full disks, signals
	go test -tags e2e -count=1 ./test/e2e/...

browser: ## two people chat in Chromium while the node is killed (needs npm and chromium)
	cd test/browser && npm ci --no-audit --no-fund && npm test

lint: ## run go vet and golangci-lint (the first time it builds the linter)
	go vet -tags e2e ./...
	$(GOLANGCI_LINT) run ./...

fmt: ## format everything
	$(GOLANGCI_LINT) fmt ./...

bench: ## measure a node next to its yardsticks (about ten minutes)
	go run ./bench
