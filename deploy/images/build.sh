#!/usr/bin/env bash
# Builds the images. Not run here: it needs Docker with buildx; CI runs it where an engine exists. What is checked without
# one: hadolint, and the steps themselves (`python -m deploy.images.run_steps`).
#
#   deploy/images/build.sh pin                  look up the base's digest and write it to base.digest; commit the file
#   deploy/images/build.sh cpu|gpu|demo         rag-stack, rag-stack-gpu, rag-stack-demo
#   deploy/images/build.sh sbom IMAGE FOLDER    the image's bill of materials: FOLDER/sbom.json, CycloneDX
#
# VERSION (0.1.0), PREFIX (a registry and a folder, with a slash at the end), PUSH=1 (push instead of load),
# REQUIRE_DIGEST=1 (refuse to build on a base that no digest pins; CI sets it).
set -euo pipefail
cd "$(dirname "$0")/../.."

base=python:3.11.16-slim-bookworm
version=${VERSION:-0.1.0}
prefix=${PREFIX:-}
pinned=deploy/images/base.digest

pin() {
    docker buildx imagetools inspect "$base" --format '{{.Manifest.Digest}}' >"$pinned.new"
    grep -qxE 'sha256:[0-9a-f]{64}' "$pinned.new" || {
        echo "expected a sha256 digest of $base, got: $(cat "$pinned.new")" >&2
        exit 1
    }
    mv "$pinned.new" "$pinned"
    echo "$base@$(cat "$pinned")"
}

image() { # FILE NAME ARGUMENT...
    local file=$1 name=$2 output=(--load)
    shift 2
    # Only a registry keeps what a build says about itself.
    [ "${PUSH:-0}" = 1 ] && output=(--push --provenance=true --sbom=true)
    docker buildx build --file "deploy/images/$file.Dockerfile" --tag "$prefix$name:$version" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse HEAD)" \
        "${output[@]}" "$@" .
}

digest() {
    if [ -s "$pinned" ]; then
        echo "@$(cat "$pinned")"
    elif [ "${REQUIRE_DIGEST:-0}" = 1 ]; then
        echo "expected $pinned; make it with: deploy/images/build.sh pin" >&2
        exit 1
    fi
}

case "${1:-}" in
pin) pin ;;
cpu) at=$(digest) && image cpu rag-stack --target server --build-arg "BASE_DIGEST=$at" ;;
gpu) at=$(digest) && image gpu rag-stack-gpu --target server --build-arg "BASE_DIGEST=$at" ;;
demo) image demo rag-stack-demo --build-arg "IMAGE=${prefix}rag-stack:$version" ;;
sbom)
    docker buildx build --file deploy/images/sbom.Dockerfile --build-arg "IMAGE=${2:?IMAGE}" --target file \
        --output "type=local,dest=${3:?FOLDER}" .
    ;;
*)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
    ;;
esac
