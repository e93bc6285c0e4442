# The program alone, on a small Debian, as a user without rights. The first build compiles RocksDB: about 15 minutes on two
# cores. What was compiled stays in the cache of the builder, so a later build compiles only what has changed.
#
#   docker build --build-arg ROLLCALL_COMMIT=$(git rev-parse --short=12 HEAD) -t rollcall:0.2.0 .
#   docker run --read-only --cap-drop ALL --tmpfs /tmp -v rollcall:/var/lib/rollcall --network host rollcall:0.2.0

FROM rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends clang libclang-dev libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# What `rollcall --version` says.
ARG ROLLCALL_COMMIT=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --release --locked --features otlp --bin rollcall \
    && cp /target/release/rollcall /usr/local/bin/rollcall

FROM debian:12.11-slim@sha256:b1a741487078b369e78119849663d7f1a5341ef2768798f7b7406c4240f86aef
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 libstdc++6 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 rollcall \
    && useradd --system --uid 10001 --gid rollcall rollcall \
    && install --directory --owner rollcall --group rollcall /var/lib/rollcall /var/lib/rollcall-checkpoints
COPY --from=build /usr/local/bin/rollcall /usr/local/bin/rollcall
# By number, so that Kubernetes sees that it is not root.
USER 10001:10001
WORKDIR /var/lib/rollcall
EXPOSE 8080
# Of `rollcall serve`; another command wants another one, or none.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["rollcall", "health"]
ENTRYPOINT ["rollcall"]
CMD ["serve"]
