#!/usr/bin/env bash
# Fine-tuning on one GPU, arguments as of `amos-fairseq finetune`:
#   sbatch slurm/finetune.sh ARGUMENT..
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
[ -f "$here/common.sh" ] || here="${SLURM_SUBMIT_DIR:-.}/slurm" # Slurm runs a copy of this file
# shellcheck source=slurm/common.sh
source "$here/common.sh" || exit 2 # submit from the repository's folder

finetune "$@"
