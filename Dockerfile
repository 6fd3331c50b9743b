# syntax=docker/dockerfile:1
# Builds the production image: no stand-ins, no shell, not root.
#
#   docker build -t penstock .
#   docker run --rm --read-only --tmpfs /var/cache/penstock:uid=65532 \
#       -v ./pipeline.toml:/etc/penstock/pipeline.toml:ro -p 127.0.0.1:9180:9180 penstock

FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    sh deploy/docker/build-layout.sh /out

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/ /
ENV PENSTOCK_CONFIG=/etc/penstock/pipeline.toml
VOLUME ["/var/cache/penstock"]
EXPOSE 9180
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["/usr/bin/penstock", "health", "--ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/penstock"]
CMD ["run"]
