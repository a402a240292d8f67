#!/usr/bin/env bash
# Lint and test the package in its own virtual environment: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh
prepare_environment test

export GOMP_SPINCOUNT=20000  # threads that wait do not spin for long: much faster on a busy machine
ruff check .
pytest "$@"
