#!/bin/sh
# Builds Penstock for production and lays the image's files out in a folder. The Dockerfile runs it, and so
# does the test that has no Docker engine.
#
#   deploy/docker/build-layout.sh <folder> [cargo profile, default release]
set -eu
out=$1
profile=${2:-release}
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cargo build --profile "$profile" --no-default-features --package penstock --bin penstock
cargo xtask plugins
case $profile in dev) built=debug ;; *) built=$profile ;; esac
install -D -m 0755 "$target/$built/penstock" "$out/usr/bin/penstock"
install -D -m 0644 plugins/outbox_router.wasm "$out/etc/penstock/plugins/outbox_router.wasm"
install -D -m 0644 deploy/docker/pipeline.toml "$out/etc/penstock/pipeline.toml"
install -d -m 0777 "$out/var/cache/penstock"
