#!/usr/bin/env bash
# Both benchmarks on one GPU, within nine minutes and without a network: bash examples/benchmarks/gpu.sh [FOLDER]
# Writes ops.json and step.json, after every comparison anew, and their tables ops.txt and step.txt into FOLDER.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-gpu-benchmarks}"
mkdir -p "$folder"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if ! timeout 90 python -m amos_fairseq.csrc.build cuda; then
    echo "the CUDA ops were not built: \"ours\" is \"ours, without kernels\" below"
fi
run() { # NAME SECONDS: a benchmark, or what of it fits into so many seconds
    timeout "$2" python "examples/benchmarks/$1.py" --device cuda --seconds 6 --out "$folder/$1.json" 2>&1 |
        tee "$folder/$1.txt"
    [ "${PIPESTATUS[0]}" -eq 124 ] && echo "$1: out of time after $2 s; $folder/$1.json has what was measured" | tee -a "$folder/$1.txt"
    return 0
}
run ops 225
run step 215
