#!/usr/bin/env bash
# Install the package, pre-train a small model on this machine's CPU and show what it learnt:
#   bash examples/quickstart/run.sh [--corpus PATH] [--method amos_rtd] [--out FOLDER] [--updates N]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
prepare_environment huggingface,data
exec amos-fairseq quickstart "$@"
