# syntax=docker/dockerfile:1
# Darkroom's server in a container.
#
#   docker build -t darkroom .
#   docker run --rm -v darkroom:/data darkroom keys create me     # prints a key, once
#   docker run -p 127.0.0.1:8188:8188 -v darkroom:/data darkroom
#
# Models: mount a folder laid out as ComfyUI's and set DARKROOM_ENGINE_MODELS_DIR to where it is.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# cc builds SQLite, ring and libwebp; the image has it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin darkroom \
    && cp target/release/darkroom /usr/local/bin/darkroom

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin darkroom \
    && install -d -o darkroom -g darkroom -m 0700 /data
COPY --from=build /usr/local/bin/darkroom /usr/local/bin/darkroom
USER darkroom
WORKDIR /data
# Inside a container loopback reaches nobody. The server still wants a key on this address.
ENV DARKROOM_SERVER_HOST=0.0.0.0 \
    DARKROOM_STORAGE_DATA_DIR=/data
VOLUME /data
EXPOSE 8188
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --start-period=60s --retries=3 CMD ["darkroom", "health"]
ENTRYPOINT ["darkroom"]
CMD ["serve"]
