# pintle's task runner: a table of contents. `make` lists the targets.
#
# One Cargo profile (release) serves every target, so that RocksDB, ten minutes and more on two cores, is compiled once.
# Compiled code is kept outside the clone unless CARGO_TARGET_DIR says otherwise; `target` is a link to it.

export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pintle/target
export PINTLE_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pintle/tools
CARGO := cargo
# Every test program has a deadline (scripts/run-test), whatever machine it is built for.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr a-z- A-Z_)
PINTLE := target/release/pintle

.DEFAULT_GOAL := help
.PHONY: help setup build up down check test fuzz differential foreign-clients failover bench bench-store

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Install what building, running and testing needs (Debian 12; elsewhere it prints the list)
	@scripts/setup

build: setup ## Build target/release/pintle
	@[ "$$CARGO_TARGET_DIR" = "$(CURDIR)/target" ] || [ -L target ] || [ ! -e target ] || \
		{ echo "build: target is a directory of its own, made by cargo without make; remove it, it becomes a link to $$CARGO_TARGET_DIR" >&2; exit 1; }
	@mkdir -p "$$CARGO_TARGET_DIR" && { [ "$$CARGO_TARGET_DIR" = "$(CURDIR)/target" ] || ln -sfn "$$CARGO_TARGET_DIR" target; }
	$(CARGO) build --release --locked -p pintle

up: build ## Start three servers and two workers, and point kubectl at them
	$(PINTLE) cluster up

down: ## Stop that cluster and remove it
	$(PINTLE) cluster down

check: setup ## Formatting, lints, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny > /dev/null; then cargo deny --locked check licenses bans sources; else echo "check: cargo-deny is not installed, licences not checked"; fi

test: build ## Every test: unit, script, in-process clusters, real processes and clients; each fuzz target for a moment
	CARGO_TARGET_$(HOST)_RUNNER=$(CURDIR)/scripts/run-test $(CARGO) test --release --locked --workspace --no-fail-fast
	FUZZ_SECONDS=6 scripts/fuzz

fuzz: setup ## Every decoder, and applying, under a coverage-guided fuzzer (FUZZ_SECONDS=600 for each target)
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} scripts/fuzz

differential: build ## A million random operations on the store and on a real etcd; `make test` does 50,000
	PINTLE_DIFF_OPS=$${PINTLE_DIFF_OPS:-1000000} $(CARGO) test --release --locked -p pintle-tests --test differential -- --nocapture --test-threads=1

foreign-clients: build ## Suites of clients that others wrote: Go, Rust, Node, Python
	scripts/foreign-clients

failover: build ## Kill the leader twenty times under load; print write gaps and losses
	$(CARGO) build --release --locked -p pintle-jepsen
	@$(PINTLE) cluster status > /dev/null || $(PINTLE) cluster up
	target/release/pintle-jepsen failover

bench: build ## 500 simulated nodes with 5,000 pods; start of real pods; cost when idle
	scripts/bench

ETCD ?= $(PINTLE_TOOLS)/sid/usr/bin/etcd
BENCH_STORE ?=
bench-store: build ## The store against an etcd (ETCD=/path/to/etcd, BENCH_STORE=--quick): every figure, goals, docs/BENCH.md
	$(PINTLE) bench store --against $(ETCD) $(BENCH_STORE) --svg docs/bench-store.svg --markdown docs/BENCH.md
