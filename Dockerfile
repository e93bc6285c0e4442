# The program alone, on a small Debian. The first build compiles RocksDB: about 15 minutes on two cores.

FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends clang libclang-dev libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# What `rollcall --version` says: docker build --build-arg ROLLCALL_COMMIT=$(git rev-parse --short=12 HEAD)
ARG ROLLCALL_COMMIT=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --release --locked --bin rollcall \
    && cp /target/release/rollcall /usr/local/bin/rollcall

FROM debian:12.11-slim@sha256:b1a741487078b369e78119849663d7f1a5341ef2768798f7b7406c4240f86aef
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 rollcall \
    && install --directory --owner rollcall /var/lib/rollcall /var/lib/rollcall-checkpoints
COPY --from=build /usr/local/bin/rollcall /usr/local/bin/rollcall
USER rollcall
WORKDIR /var/lib/rollcall
EXPOSE 8080
# Of `rollcall serve`; another command wants another one, or none.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["rollcall", "health"]
ENTRYPOINT ["rollcall"]
CMD ["serve"]
