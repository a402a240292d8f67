# shellcheck shell=bash
# What the scripts of this folder share; each sources it and calls one of: pretrain, finetune, prepare.
#
# Under Slurm a command runs by srun, one task per GPU, on a plain machine by torchrun. A command that is stopped by the
# signal that Slurm sends before the time limit saves and exits with STOPPED. Then the job is requeued, or without Slurm
# the command started again, as long as each attempt gets further than the one before. DRY_RUN=1 prints the command, and
# what a pre-training would be; it needs no GPU, no data and no Slurm.

STOPPED=75
STOPPED_BEFORE_IT_LISTENED=140 # 128 + SIGUSR2
# torchrun exits with 1 whatever its processes exit with: a mark says that one was stopped.
# shellcheck disable=SC2016
MARK_STOPPED='trap : USR2 TERM; "$@" && exit; s=$?; [ $s -eq 75 ] && touch "$MARKS/stopped" && exit; exit $s'
# shellcheck disable=SC2016
NAME_RANK='RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"'
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# pretrain RECIPE [OVERRIDE..]: a yaml file under examples/, and hydra's words for what is to differ from it.
pretrain() {
    local recipe="${1:-}" file data save_dir batch_size update_freq processes target command
    file="$root/examples/$recipe.yaml"
    [ -f "$file" ] || fail "unknown recipe '$recipe': choose one of $(recipes)"
    shift
    [ -z "$(override optimization.update_freq "$@")" ] ||
        fail "leave out optimization.update_freq: the sequences per update give it, TARGET_BATCH=N changes these"
    find_command
    batch_size="$(recipe_number batch_size "$file")"
    update_freq="$(recipe_number update_freq "$file")"
    processes="$(recipe_number distributed_world_size "$file")"
    find_processes "$(override common.cpu "$@")" "$(override distributed_training.distributed_world_size "$@")" "$processes"
    target="${TARGET_BATCH:-$((batch_size * update_freq * processes))}"
    if [ -n "$(override dataset.batch_size "$@")" ]; then
        batch_size="$(override dataset.batch_size "$@")"
    elif ((batch_size * world_size > target && target >= world_size)); then # more GPUs than the recipe's batch is for
        batch_size=$((target / world_size))
    fi
    update_freq=$((target / (batch_size * world_size)))
    ((update_freq > 0 && update_freq * batch_size * world_size == target)) ||
        fail "$world_size processes x dataset.batch_size=$batch_size do not divide $target sequences per update:" \
            "choose other numbers, or TARGET_BATCH=N"

    data="$(absolute "$(override task.data "$@")" data)"
    [ "${DRY_RUN:-0}" = 1 ] || [ -f "${data%%:*}/manifest.json" ] || [ -f "$(dirname "${data%%:*}")/manifest.json" ] ||
        fail "$data holds no prepared data: task.data=FOLDER names it, amos-fairseq prepare writes it"
    save_dir="$(absolute "$(override checkpoint.save_dir "$@")" "runs/${recipe/\//-}")" # as in the recipe

    command=(
        amos-fairseq train --config-dir "$(dirname "$file")" --config-name "$(basename "$recipe")" "$@"
        "task.data=$data" "checkpoint.save_dir=$save_dir" "hydra.run.dir=$save_dir"
        "dataset.batch_size=$batch_size" "optimization.update_freq=[$update_freq]"
        "distributed_training.distributed_world_size=$world_size"
    )
    run_until_done newest_update "$save_dir" "${command[@]}"
    "${command[@]}" --dry-run # what is left to do with DRY_RUN=1
}

# finetune ARGUMENT..: as `amos-fairseq finetune` takes them, on one GPU.
finetune() {
    find_command
    find_processes "" 1
    run_until_done newest_file "$(value_of --out "$@")" amos-fairseq finetune "$@"
}

# prepare ARGUMENT..: as `amos-fairseq prepare` takes them; a task of an array does its part of the work.
prepare() {
    local part=() first="${SLURM_ARRAY_TASK_MIN:-0}" count="${SLURM_ARRAY_TASK_COUNT:-1}"
    find_command
    if [ "$count" -gt 1 ]; then
        [ $((SLURM_ARRAY_TASK_MAX - first + 1)) -eq "$count" ] ||
            fail "the array has gaps: use sbatch --array=0-$((count - 1))"
        part=(--part "$((SLURM_ARRAY_TASK_ID - first))/$count")
    fi
    launcher=() # one process on each machine
    run_until_done encoded_slices "$(value_of --out "$@")" \
        amos-fairseq prepare "$@" --workers "${SLURM_CPUS_PER_TASK:-$(nproc)}" "${part[@]}"
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# The value of the last override of KEY: override KEY "$@"
override() {
    local key="$1" value="" argument
    for argument in "${@:2}"; do
        [ "${argument%%=*}" != "$key" ] || value="${argument#*=}"
    done
    echo "$value"
}

# The value of the last OPTION, given as two words or with =: value_of OPTION "$@"
value_of() {
    local option="$1" value="" before="" argument
    for argument in "${@:2}"; do
        [ "$before" != "$option" ] || value="$argument"
        [ "${argument%%=*}" != "$option" ] || [ "$argument" = "$option" ] || value="${argument#*=}"
        before="$argument"
    done
    echo "$value"
}

recipes() {
    (cd "$root/examples" && echo ./*/*.yaml) | sed 's,\./,,g; s,\.yaml,,g'
}

recipe_number() {
    local number
    number="$(sed -En "s/^  $1: \[?([0-9]+)\]? *(#.*)?$/\1/p" "$2")"
    [[ "$number" =~ ^[0-9]+$ ]] || fail "$2 has not one $1"
    echo "$number"
}

# PATH, or DEFAULT in its place, seen from the current folder.
absolute() {
    local path="${1:-$2}"
    case "$path" in /*) echo "$path" ;; *) echo "$PWD/$path" ;; esac
}

find_command() {
    [ ! -x "$root/.venv/bin/amos-fairseq" ] || PATH="$PATH:$root/.venv/bin"
    command -v amos-fairseq > /dev/null ||
        fail "amos-fairseq is not on PATH: activate the environment that it is installed in"
}

# Sets `world_size` and `launcher`: find_processes [true: on the CPU] [PROCESSES] [GPUS, for a dry run where there are none]
find_processes() {
    local on_cpu="$1" asked="$2" gpus per_node nodes="${SLURM_JOB_NUM_NODES:-1}" hosts port
    gpus="$(count_gpus)"
    [ "${DRY_RUN:-0}" != 1 ] || [ -n "${SLURM_JOB_ID:-}" ] || [ "$gpus" -gt 0 ] || gpus="${asked:-${3:-0}}"
    if [ "$on_cpu" != true ] && [ "$gpus" -eq 0 ]; then
        fail "no GPU found on $(hostname): ask for some by sbatch --gpus-per-node=N"
    fi
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        world_size="${asked:-$([ "$on_cpu" = true ] && echo 1 || echo "$gpus")}"
        [ "$on_cpu" = true ] || [ "$world_size" -le "$gpus" ] ||
            fail "distributed_training.distributed_world_size=$world_size, but there are $gpus GPUs: leave it out"
        launcher=()
        [ "$world_size" -eq 1 ] ||
            launcher=(torchrun --nproc-per-node "$world_size" --master-port $((20000 + $$ % 10000)) --no-python)
        return
    fi
    per_node="${SLURM_NTASKS_PER_NODE:-${SLURM_NTASKS:-1}}"
    [ -n "${SLURM_NTASKS_PER_NODE:-}" ] || [ "$nodes" -eq 1 ] ||
        fail "the number of tasks per node is not set: add sbatch --ntasks-per-node=N"
    [ "$on_cpu" = true ] || [ "$per_node" -eq "$gpus" ] ||
        fail "$per_node tasks per node but $gpus GPUs: sbatch --gpus-per-node=N --ntasks-per-node=N has one for each"
    world_size=$((nodes * per_node))
    hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
    MASTER_ADDR="${hosts%%$'\n'*}"
    port=$((20000 + SLURM_JOB_ID % 10000))
    export MASTER_ADDR MASTER_PORT="$port" WORLD_SIZE="$world_size"
    # A task that has saved and left must not have the others killed while they still save.
    launcher=(
        srun --nodes "$nodes" --ntasks "$world_size" --ntasks-per-node "$per_node" --distribution block
        --kill-on-bad-exit=0 --wait=600 ${SLURM_CPUS_PER_TASK:+--cpus-per-task "$SLURM_CPUS_PER_TASK"}
    )
}

count_gpus() {
    if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
        echo "$SLURM_GPUS_ON_NODE"
    elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        awk -F, '{ print NF }' <<< "$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi > /dev/null; then
        nvidia-smi -L | grep -c '^GPU' || true
    else
        echo 0
    fi
}

# How far a run is, in words that differ once it is further; there may be no folder yet.
newest_update() {
    find "$1" -maxdepth 1 -name 'checkpoint_*' 2> /dev/null |
        sed -En 's,.*/checkpoint_[0-9]+_([0-9]+)(-[0-9]+|\.pt)?$,\1,p' | sort -n | tail -n 1 || true
}
newest_file() {
    find "$1" -type f -printf '%T@ %p\n' 2> /dev/null | sort -n | tail -n 1 || true
}
encoded_slices() {
    find "${1%/}.partial/encoded" -name '*.npz' 2> /dev/null | wc -l || true
}

# run_until_done PROGRESS FOLDER COMMAND..: PROGRESS is one of the functions above.
run_until_done() {
    local progress="$1" folder="$2" before after status
    shift 2
    if [ "${DRY_RUN:-0}" = 1 ]; then
        launch "$@"
        return
    fi
    while true; do
        before="$("$progress" "$folder")"
        status=0
        launch "$@" || status=$?
        [ "$status" -eq "$STOPPED" ] || [ "$status" -eq "$STOPPED_BEFORE_IT_LISTENED" ] || exit "$status"
        after="$("$progress" "$folder")"
        if [ "$after" = "$before" ]; then
            echo "error: stopped, and not started again: this attempt got no further than the one before it" >&2
            exit "$status"
        fi
        if [ -n "${SLURM_JOB_ID:-}" ]; then
            echo "stopped: job $SLURM_JOB_ID goes back into the queue" >&2
            exec scontrol requeue "$SLURM_JOB_ID"
        fi
        echo "stopped: the same command goes on" >&2
    done
}

# launch COMMAND..: run it by `launcher`, passing signals on; returns its status, STOPPED if a process was stopped.
launch() {
    local marks status next
    case "${launcher[0]:-}" in
        srun) set -- "${launcher[@]}" bash -c "$NAME_RANK" task "$@" ;;
        torchrun) set -- "${launcher[@]}" bash -c "$MARK_STOPPED" task "$@" ;;
    esac
    if [ "${DRY_RUN:-0}" = 1 ]; then
        show "$@"
        return
    fi
    marks="$(mktemp -d)"
    MARKS="$marks" "$@" &
    launched=$! signalled=""
    trap 'signalled=1; pass_on_stop' USR2 TERM
    trap 'kill -TERM "$launched"; wait "$launched"; exit 130' INT
    status=0
    wait "$launched" || status=$?
    while [ -n "$signalled" ]; do # a signal ends the waiting, not the command
        signalled="" next=0
        wait "$launched" || next=$?
        [ "$next" -eq 127 ] || status="$next" # 127: the status was told before
    done
    trap - USR2 TERM INT
    [ ! -e "$marks/stopped" ] || [ "$status" -ne 0 ] || status="$STOPPED"
    rm -rf "$marks"
    return "$status"
}

# Words as a shell would read them.
show() {
    local word line=""
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:,=@%+-]+$ ]] || word="${word@Q}"
        line+=" $word"
    done
    echo "${line# }"
}

# srun passes a signal on to its tasks; torchrun would die of it, its processes lead groups of their own.
pass_on_stop() {
    local child
    if [ "${launcher[0]:-}" = torchrun ]; then
        for child in $(pgrep -P "$launched"); do
            kill -USR2 -- "-$child" || true
        done
    else
        kill -USR2 "$launched" || true
    fi
}
