#!/usr/bin/env bash
# Lint, type-check and test the package in its own virtual environment: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh
prepare_environment test

ruff check .
mypy
# A process more than there are cores, for some tests wait, a file of tests at a time, in order, for files of few tests
# are the longest; each with one thread, for the tests' networks are tiny.
export OMP_NUM_THREADS=1
pytest --numprocesses="$(($(getconf _NPROCESSORS_ONLN) + 1))" --dist=loadfile --no-loadscope-reorder "$@"
