#!/usr/bin/env bash
# Installs torch and the pins of a lock into the environment of a Python; make, the images and conda call this:
#   envs/install.sh [PYTHON [LOCK]]
# Every file but torch's is checked against the lock's hashes, and builds use only locked tools.
set -euo pipefail
here=$(dirname "$0")
python=${1:-python}
lock=${2:-$here/requirements.lock}
# These are published as sources only; all others are installed from wheels.
from_source=connection-pool,transformers-stream-generator

install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

install --no-deps --requirement "$here/torch.txt"
sed -n '/^setuptools==/,/^    #/p' "$lock" | install --no-deps --require-hashes --requirement /dev/stdin
install --no-deps --require-hashes --only-binary :all: --no-binary "$from_source" --no-build-isolation --use-pep517 \
  --requirement "$lock"
# The other requirements of torch's wheel: on Linux, the CUDA libraries from the Python Package Index.
install --requirement "$here/torch.txt"
