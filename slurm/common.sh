# shellcheck shell=bash
# What the scripts of this folder share; each sources it and calls one of: pretrain, finetune, prepare.
#
# Under Slurm a command runs by srun, one task per GPU, on a plain machine by torchrun. A command that ends before its
# work is done, be it that Slurm's signal before the time limit stopped it (STOPPED), a node was lost or nothing moved,
# has its job requeued, or without Slurm is started again, as long as each attempt gets further than the one before.
# Where only the user can help, the job ends with the last errors. DRY_RUN=1 prints the command, and what a pre-training
# would be; it needs no GPU, no data and no Slurm.

STOPPED=75
DISK=74
FOR_THE_USER=" 2 64 65 130 " # the command, its configuration or its data are wrong; interrupted twice
# torchrun exits with 1 whatever its processes exit with, and stops the others: the first to end says why.
# shellcheck disable=SC2016
TELL_STATUS='trap : USR2 TERM; "$@" && exit; s=$?; (set -C; echo $s > "$MARKS/status"); [ $s -eq 75 ] || exit $s'
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
    run_until_done fine_tuned "$(value_of --out "$@")" amos-fairseq finetune "$@"
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
    local on_cpu="$1" asked="$2" gpus per_node nodes="${SLURM_JOB_NUM_NODES:-1}" hosts
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
        [ "$world_size" -eq 1 ] || launcher=(torchrun --nproc-per-node "$world_size" --no-python)
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
    export MASTER_ADDR WORLD_SIZE="$world_size"
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
fine_tuned() {
    find "$1" \( -name result.json -o -name '*.npz' -o -name 'checkpoint_*_*' ! -name '*.tmp' \) 2> /dev/null | sort || true
}
encoded_slices() {
    find "${1%/}.partial/encoded" -name '*.npz' 2> /dev/null | wc -l || true
}

# run_until_done PROGRESS FOLDER COMMAND..: PROGRESS is one of the functions above.
run_until_done() {
    local progress="$1" folder="$2" before status port ports_taken=0 quits=""
    shift 2
    port=$((20000 + (${SLURM_JOB_ID:-$$} + ${SLURM_RESTART_COUNT:-0}) % 10000))
    if [ "${DRY_RUN:-0}" = 1 ]; then
        launch "$@"
        return
    fi
    marks="$(mktemp -d)"
    trap 'rm -rf "$marks"' EXIT
    while true; do
        before="$("$progress" "$folder")"
        status=0
        launch "$@" || status=$?
        [ "$status" -ne 0 ] || exit 0
        [ -z "$quits" ] || exit "$status"
        [[ "$FOR_THE_USER" != *" $status "* ]] || give_up "starting it again would change nothing"
        [ "$status" -ne "$DISK" ] || has_room "$folder" || give_up "there is no room in $folder"
        if [ "$("$progress" "$folder")" = "$before" ]; then
            { port_was_taken && ((++ports_taken < 10)); } || give_up "this attempt got no further than the one before it"
            ((port += 1))
            continue
        fi
        if [ -n "${SLURM_JOB_ID:-}" ]; then
            echo "$(ended): job $SLURM_JOB_ID goes back into the queue" >&2
            scontrol requeue "$SLURM_JOB_ID"
            exit
        fi
        echo "$(ended): the same command goes on" >&2
        ((port += 1))
    done
}

ended() {
    [ "$status" -eq "$STOPPED" ] && echo "stopped" || echo "ended with status $status"
}

# End the job with the command's status, the reason given, and the errors that were told last.
give_up() {
    echo "error: $(ended), and not started again: $*" >&2
    [ ! -s "$marks/errors" ] || { echo "its last errors:" && tail -n 5 "$marks/errors" | cut -c 1-300; } >&2
    exit "$status"
}

# Whether a file of 1 MiB can be written into FOLDER, or where that is to be.
has_room() {
    local folder="$1" written=0
    while [ ! -d "$folder" ]; do folder="$(dirname "$folder")"; done
    head -c 1048576 /dev/zero 2> /dev/null > "$folder/.room" || written=$?
    rm -f "$folder/.room"
    return "$written"
}

port_was_taken() {
    grep -q EADDRINUSE "$marks/errors"
}

# The first of PORT and those after it at which nothing listens on this machine, where the first process is.
free_port() {
    local port="$1"
    while (: 3<> "/dev/tcp/localhost/$port") 2> /dev/null; do port=$((port + 1)); done
    echo "$port"
}

# launch COMMAND..: run it by `launcher`, passing signals on; returns the status that says why it ended.
launch() {
    local status next
    port="$(free_port "$port")"
    case "${launcher[0]:-}" in
        srun) set -- "${launcher[@]}" bash -c "$NAME_RANK" task "$@" ;;
        torchrun) set -- "${launcher[@]}" --master-port "$port" bash -c "$TELL_STATUS" task "$@" ;;
    esac
    if [ "${DRY_RUN:-0}" = 1 ]; then
        show "$@"
        return
    fi
    rm -f "$marks"/*
    # Ctrl-C is for this script alone: torchrun would give its processes 30 s to save, and then kill them.
    [ "${launcher[0]:-}" != torchrun ] || set -- setsid "$@"
    MARKS="$marks" MASTER_PORT="$port" "$@" 2> >(keep_errors) &
    launched=$! signalled=""
    trap 'signalled=1; pass_on_stop' USR2 TERM
    trap 'signalled=1 quits=1; pass_on_stop' INT HUP # Ctrl-C, or the terminal is gone
    status=0
    wait "$launched" || status=$?
    while [ -n "$signalled" ]; do # a signal ends the waiting, not the command
        signalled="" next=0
        wait "$launched" || next=$?
        [ "$next" -eq 127 ] || status="$next" # 127: the status was told before
    done
    trap - USR2 TERM INT HUP
    for _ in {1..50}; do # what holds its standard error open may outlive the command
        [ ! -e "$marks/read" ] || break
        sleep 0.02
    done
    [ ! -s "$marks/status" ] || status="$(< "$marks/status")"
    return "$status"
}

# Pass standard error on, and keep the lines that tell an error; a signal to all processes must not end this.
keep_errors() {
    trap '' USR2 TERM INT HUP
    tee >(grep --line-buffered -ai error > "$marks/errors"; touch "$marks/read") >&2
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
