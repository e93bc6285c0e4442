# What there is to do here. `make` alone lists it.

# Outside the clone, so that RocksDB (ten minutes and more of two cores) is compiled once a machine, not once a clone.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/rollcall/target
export PATH := $(PATH):$(HOME)/.cargo/bin:$(HOME)/.cache/rollcall/tools/bin

# Pinned: a new version may judge otherwise. It takes three minutes of one core to compile, once a machine.
CARGO_DENY := 0.20.2

# `step NAME, COMMAND` runs one step of `make ci` and says how long it took.
step = @echo "== $(1)" && start=$$(date +%s) && $(2) && echo "== $(1): $$(($$(date +%s) - start)) s"

.PHONY: help run test test-faults ci bench sim setup

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 18

run: setup ## a server with 1,000 simulated users
	cargo run --release -- serve --demo 1000

test: setup ## every test; the last line counts them
	scripts/test

# Advisories are left out: their database comes from the network, and a build must not turn red by itself. Run
# `cargo deny check advisories` by hand. Formatting and cargo-deny come first: they fail within seconds.
ci: setup ## what must pass before a change lands: formatting, licences, lints, tests
	$(call step,fetching dependencies,cargo fetch --locked)
	$(call step,formatting,cargo fmt --check)
	$(call step,installing cargo-deny,{ command -v cargo-deny >/dev/null || \
	    env -u CARGO_TARGET_DIR cargo install cargo-deny --version $(CARGO_DENY) --locked --quiet \
	        --root $(HOME)/.cache/rollcall/tools; })
	$(call step,licences and sources,cargo deny --locked --offline check bans licenses sources)
	$(call step,lints,cargo clippy --release --locked --all-targets -- -D warnings)
	$(call step,tests,scripts/test --locked)

SEED ?= 1-300

sim: setup ## simulated worlds that try to break the engine; make sim SEED=17, or SEED=1-100000
	cargo run --release -- sim --seeds $(SEED)

MINUTES ?= 25

test-faults: setup ## engines and brokers killed for MINUTES=25, then the table of what was lost; SEED=n repeats
	cargo test --release --test faults -- --minutes $(MINUTES) $(if $(filter command line environment,$(origin SEED)),--seed $(SEED))

bench: setup ## the benchmarks, in the profile everything is built with
	cargo bench --profile release --benches

setup: ## what a build needs is installed, or named
	@scripts/setup
