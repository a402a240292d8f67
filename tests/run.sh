#!/usr/bin/env bash
# Lint, type-check and test the package in its own virtual environment: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/environment.sh
prepare_environment test

ruff check .
mypy
# One process for each core, a file of tests at a time, in order, for files of few tests are the longest; each with one
# thread, for the tests' networks are tiny.
export OMP_NUM_THREADS=1
pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
