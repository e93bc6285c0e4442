# The program alone, on a small Debian. The first build compiles RocksDB: ten minutes and more.

FROM rust:1.95.0-bookworm AS build
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

FROM debian:12.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 rollcall \
    && install --directory --owner rollcall /var/lib/rollcall /var/lib/rollcall-checkpoints
COPY --from=build /usr/local/bin/rollcall /usr/local/bin/rollcall
USER rollcall
WORKDIR /var/lib/rollcall
EXPOSE 8080
ENTRYPOINT ["rollcall"]
CMD ["serve"]
