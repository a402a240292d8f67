#!/usr/bin/env bash
# What one GPU must show, in nine minutes at most and without a network: bash examples/benchmarks/gpu.sh [FOLDER] [OPTION..]
exec python3 "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
