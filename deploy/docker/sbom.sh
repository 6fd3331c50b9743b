#!/bin/sh
# What the production binary is made of, as a CycloneDX bill of materials: every crate that is linked into it or builds what
# is (OpenSSL comes in a crate that only builds), with its version, licence and where it is from; none of the stand-ins.
#
#   deploy/docker/sbom.sh <file>
#
# By cargo-cyclonedx, which is installed where it is not.
set -eu
out=$1
cd "$(dirname "$0")/../.."
command -v cargo-cyclonedx >/dev/null || cargo install --locked --quiet cargo-cyclonedx --version 0.5.9
# It writes one beside each Cargo.toml of the workspace; ours is that of the program.
name=sbom-$$
trap 'find . -path ./target -prune -o -name "$name.json" -exec rm {} +' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-default-features --override-filename "$name"
install -D -m 0644 "$name.json" "$out"
