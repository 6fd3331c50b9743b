# syntax=docker/dockerfile:1
# Builds the production image: no stand-ins, no shell, not root.
#
#   docker build -t penstock:0.1.0 .
#   docker run --rm --read-only --tmpfs /var/cache/penstock:uid=65532 \
#       -v ./deploy/docker:/etc/penstock/mounted:ro -e PENSTOCK_CONFIG=/etc/penstock/mounted/pipeline.toml \
#       -e PENSTOCK_ADMIN__LISTEN=0.0.0.0:9180 -e PENSTOCK_ADMIN__TOKEN=penstock \
#       -p 127.0.0.1:9180:9180 penstock:0.1.0
#
# with your servers in the pipeline.toml of the folder; docker-compose.yml brings them along.

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
