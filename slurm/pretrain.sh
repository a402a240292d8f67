#!/usr/bin/env bash
# Any recipe, which is a file under examples/ without its .yaml:
#   sbatch [--nodes=N] slurm/pretrain.sh amos_rtd/base [task.data=FOLDER] [dataset.batch_size=16] ..
# On a machine without Slurm, all its GPUs: bash slurm/pretrain.sh ..; DRY_RUN=1 tells what that would be.
#SBATCH --job-name=pretrain
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

pretrain "$@"
