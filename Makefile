# What there is to do here. `make` alone lists it.

# Outside the clone, so that RocksDB (ten minutes and more of two cores) is compiled once a machine, not once a clone.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/rollcall/target
export PATH := $(PATH):$(HOME)/.cargo/bin:$(HOME)/.cache/rollcall/tools/bin

# Pinned: a new version may judge otherwise. It takes three minutes of one core to compile, once a machine.
CARGO_DENY := 0.20.2

# `step NAME, COMMAND` runs one step of `make ci` and says how long it took.
step = @echo "== $(1)" && start=$$(date +%s) && $(2) && echo "== $(1): $$(($$(date +%s) - start)) s"

# The directory of the program after a build.
BIN := $(CARGO_TARGET_DIR)/release

# RocksDB is C++ and most of the first build. Said once, before the silence.
define say_how_long
	@[ -x $(BIN)/rollcall ] || echo "The first build takes about 15 minutes on two cores, most of it for RocksDB (the line \
	librocksdb-sys); later ones take a minute or two. Cargo counts the crates below."
endef

.PHONY: help run build install test quick bless golden-release test-faults soak alerts ci bench bench-peer sim fuzz setup setup-build

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 18

run: build ## a server with 1,000 simulated users, a gateway and the console
	@echo "The console will be at http://127.0.0.1:8080/; Ctrl-C stops the server. Its data is in ./rollcall-data."
	@$(BIN)/rollcall serve --demo 1000 --gateway 127.0.0.1:8090 --gateway-insecure

build: setup-build ## the program alone
	$(say_how_long)
	cargo build --release --bin rollcall

PREFIX ?= $(HOME)/.local

install: build ## rollcall in ~/.local/bin, or in PREFIX=/usr/local
	install -d $(PREFIX)/bin
	install -m 755 $(BIN)/rollcall $(PREFIX)/bin/rollcall
	@echo "$(PREFIX)/bin/rollcall"
	@case ":$$PATH:" in *":$(PREFIX)/bin:"*) ;; *) echo 'Add it to the path: export PATH="$(PREFIX)/bin:$$PATH"' ;; esac

quick: setup-build ## the tests that need no Java, Node, browser, Python or Kafka; under five minutes once built
	scripts/quick

test: setup ## every test; the last line counts them
	scripts/test

bless: setup-build ## expected texts are written again (golden bytes, scenarios); read the diff
	scripts/bless

golden-release: setup-build ## what this version leaves on disks, for every later version to open (tests/golden/releases)
	scripts/golden-release

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
	$(call step,lints without features,cargo clippy --release --locked --lib --bins -- -D warnings)
	$(call step,tests,scripts/test --locked)

SEED ?= 1-300

sim: setup-build ## simulated worlds that try to break the engine; make sim SEED=17, or SEED=1-100000
	cargo run --release -- sim --seeds $(SEED)

# Of all targets without TARGET; SEED=n repeats.
fuzz: setup-build ## every decoder gets mutated inputs; make fuzz MINUTES=10 TARGET=event, each target for MINUTES=1
	FUZZ_MINUTES=$(if $(filter command line environment,$(origin MINUTES)),$(MINUTES),1) FUZZ_TARGET=$(TARGET) \
	FUZZ_SEED=$(if $(filter command line environment,$(origin SEED)),$(SEED)) \
	    cargo test --release --lib -- --nocapture --exact fuzz::every_decoder_withstands_mutated_inputs

MINUTES ?= 25

test-faults: setup ## engines and brokers killed for MINUTES=25, then the table of what was lost; SEED=n repeats
	cargo test --release --test faults -- --minutes $(MINUTES) $(if $(filter command line environment,$(origin SEED)),--seed $(SEED))

# Ctrl-C ends all of it and checks nothing, but with DIR it ends this stretch and checks all: there the shell and cargo, which get
# the signal too, must outlive the test. LEAK=1 has an engine leak, which the soak must find.
soak: setup ## engines under a steady load and faults for MINUTES=30; fails if memory or descriptors climb; DIR=… can be continued
	$(if $(DIR),cargo test --release --no-run --test soak)
	$(if $(DIR),trap '' INT;) KAFKA_JVM=-XX:+UseSerialGC cargo test --release --test soak -- --minutes $(if $(filter command line environment,$(origin MINUTES)),$(MINUTES),30) \
	    $(if $(filter command line environment,$(origin SEED)),--seed $(SEED)) $(if $(LEAK),--leak) $(if $(DIR),--keep "$(DIR)")

alerts: setup build ## every alert of ops/alerts.yml provoked for real, with Prometheus and Kafka; 20 minutes; ONLY=WORD
	tests/kafka/python scripts/alerts --rollcall $(BIN)/rollcall $(if $(ONLY),--only "$(ONLY)")

BENCH ?=
QUICK ?=

# Compiled before the first one runs, so that the time of the short form goes to measuring.
bench: setup-build ## the benchmarks, then docs/benchmarks.md; QUICK=1 takes 15 minutes, BENCH="core http" runs some
	cargo bench --profile release --no-run --benches
	$(if $(filter peer,$(or $(BENCH),peer)),benches/peer-kstreams/run --fetch)
	scripts/benchmarks run $(if $(QUICK),--quick) $(BENCH); status=$$?; scripts/benchmarks report && exit $$status

bench-peer: setup-build ## the engine and a Kafka Streams job in turn, on the same broker and topics; QUICK=1
	benches/peer-kstreams/run --fetch
	$(if $(QUICK),ROLLCALL_BENCH_QUICK=1) ROLLCALL_BENCH_ONLY=peer cargo bench --profile release --bench kafka

setup: ## what the tests need (Java, Node, Chromium …) is installed, or named
	@scripts/setup test

setup-build: ## what a build needs (clang, libclang …) is installed, or named
	@scripts/setup build
