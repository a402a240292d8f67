#!/usr/bin/env bash
# Preparation of text on several machines, arguments as of `amos-fairseq prepare`:
#   sbatch --array=0-15 slurm/prepare.sh TEXT.. --out FOLDER
# All tasks give the same command; the first one trains the vocabulary, the last one to be done puts all together.
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=2G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
[ -f "$here/common.sh" ] || here="${SLURM_SUBMIT_DIR:-.}/slurm" # Slurm runs a copy of this file
# shellcheck source=slurm/common.sh
source "$here/common.sh" || exit 2 # submit from the repository's folder

prepare "$@"
