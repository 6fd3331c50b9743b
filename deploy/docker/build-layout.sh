#!/bin/sh
# Builds Penstock for production and lays the image's files out in a folder. The Dockerfile runs it, and so
# does the test that has no Docker engine (tests/reload/container.rs).
#
#   deploy/docker/build-layout.sh <folder> [cargo profile, default release]
#
# PENSTOCK_BINARY, PENSTOCK_PLUGIN and PENSTOCK_SBOM name what is built already.
set -eu
out=$1
profile=${2:-release}
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
# First: the program takes the stock plugins in (build.rs).
if [ -z "${PENSTOCK_PLUGIN:-}" ]; then
    cargo xtask plugins
    PENSTOCK_PLUGIN=plugins/outbox_router.wasm
fi
if [ -z "${PENSTOCK_BINARY:-}" ]; then
    cargo build --profile "$profile" --no-default-features --package penstock --bin penstock
    case $profile in dev) built=debug ;; *) built=$profile ;; esac
    PENSTOCK_BINARY=$target/$built/penstock
fi
if [ -z "${PENSTOCK_SBOM:-}" ]; then
    PENSTOCK_SBOM=$target/sbom.cdx.json
    sh deploy/docker/sbom.sh "$PENSTOCK_SBOM"
fi
# Without its symbols, which are a quarter of it: a panic says its file and line by itself.
install -D -m 0755 -s "$PENSTOCK_BINARY" "$out/usr/bin/penstock"
install -D -m 0644 "$PENSTOCK_PLUGIN" "$out/etc/penstock/plugins/outbox_router.wasm"
install -D -m 0644 deploy/docker/pipeline.toml "$out/etc/penstock/pipeline.toml"
install -D -m 0644 "$PENSTOCK_SBOM" "$out/usr/share/doc/penstock/sbom.cdx.json"
install -d -m 0777 "$out/var/cache/penstock"
