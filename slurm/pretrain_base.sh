#!/usr/bin/env bash
# AMOS base, as in the paper (Meng et al., ICLR 2022, Table 5):
#   sbatch [--nodes=N] slurm/pretrain_base.sh [OVERRIDE..]
# Data are in ./data and checkpoints in ./runs/amos_rtd-base unless task.data= and checkpoint.save_dir= differ.
# An update has as many sequences as in the paper for any number of GPUs.
#SBATCH --job-name=amos_base
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
[ -f "$here/common.sh" ] || here="${SLURM_SUBMIT_DIR:-.}/slurm" # Slurm runs a copy of this file
# shellcheck source=slurm/common.sh
source "$here/common.sh" || exit 2 # submit from the repository's folder

pretrain amos_rtd/base "$@"
