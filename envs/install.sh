#!/usr/bin/env bash
# Installs torch and what a lock pins into the environment of a Python; make, the images and conda all call this:
#   envs/install.sh [PYTHON [LOCK]]
# Every file but torch's is checked against the lock's hashes, and nothing is built with tools that the lock does not pin.
set -euo pipefail
here=$(dirname "$0")
python=${1:-python}
lock=${2:-$here/requirements.lock}
# These are published as sources only; of all others a wheel is taken.
from_source=connection-pool,transformers-stream-generator

install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

install --no-deps --requirement "$here/torch.txt"
sed -n '/^setuptools==/,/^    #/p' "$lock" | install --no-deps --require-hashes --requirement /dev/stdin
install --no-deps --require-hashes --only-binary :all: --no-binary "$from_source" --no-build-isolation --use-pep517 \
  --requirement "$lock"
# What torch's wheel needs besides: on Linux, from the Python Package Index, the CUDA libraries.
install --requirement "$here/torch.txt"
