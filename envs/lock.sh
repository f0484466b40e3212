#!/usr/bin/env bash
# Writes the locks (make lock). Locked versions stay; make lock UPGRADE=1 takes the newest that pyproject.toml allows:
#   envs/lock.sh [PYTHON]
# requirements.lock is resolved from pyproject.toml for all platforms and Pythons at once. lab.lock holds what JupyterLab needs beside
# it, the others only the pins of their .txt files.
set -euo pipefail
cd "$(dirname "$0")/.."
from_source=$(sed -n 's/^from_source=//p' envs/install.sh)
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${1:-python}" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9
export UV_CACHE_DIR=$environment/cache

compile() {
  "$environment/bin/uv" pip compile --config-file envs/uv.toml --quiet --universal --python-version 3.11 --generate-hashes ${UPGRADE:+--upgrade} \
    --no-emit-package torch --custom-compile-command "make lock    (torch is not here: see torch.txt)" "$@" > /dev/null
}

compile pyproject.toml --extra dev --output-file envs/requirements.lock
locked=$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' envs/requirements.lock)
compile pyproject.toml --extra lab --constraint envs/requirements.lock $locked --output-file envs/lab.lock
for name in bench slurm kubernetes; do
  compile "envs/$name.txt" --no-deps --output-file "envs/$name.lock"
done

# Check that every platform has a wheel of each package, or its sources.
for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do
  for version in 3.11 3.12 3.13; do
    for lock in envs/*.lock; do
      "$environment/bin/uv" pip install --quiet --dry-run --target "$environment/$version" --no-deps --require-hashes \
        --python "$environment/bin/python" --python-platform "$platform" --python-version "$version" \
        --only-binary :all: --no-binary ${from_source//,/ --no-binary } --requirement "$lock" \
        || { echo "error: $lock cannot be installed on $platform with Python $version" >&2; exit 1; }
    done
  done
done
