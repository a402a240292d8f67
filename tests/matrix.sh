#!/usr/bin/env bash
# The tests under each supported Python that is here, and with the newest torch and everything else of the index:
#   bash tests/matrix.sh [pytest arguments]
# Each has an environment of its own in .venv-matrix/, or where AMOS_FAIRSEQ_MATRIX says: 7 GB where pip's torch is for
# CUDA. Prints a line for each; its log is beside its environment. Status 1 if any failed, or no Python is here.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
place="${AMOS_FAIRSEQ_MATRIX:-$PWD/.venv-matrix}"
mkdir -p "$place"
arguments=("$@") newest="" failed=0

# Of a version, on PATH or among pyenv's.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" -c "" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# run NAME PYTHON [VARIABLE=VALUE ..]
run() {
    local name="$1" python="$2" state=ok torch
    if ! env "${@:3}" PYTHON="$python" AMOS_FAIRSEQ_VENV="$place/$name" bash tests/run.sh "${arguments[@]}" \
        > "$place/$name.log" 2>&1; then
        state=failed failed=1
    fi
    torch="$("$place/$name/bin/python" -c "import torch; print(torch.__version__)" 2>/dev/null)"
    printf '%-8s %-7s torch %-12s %s\n' "$name" "$state" "${torch:-none}" "$(tail -n 1 "$place/$name.log")"
}

for version in 3.10 3.11 3.12 3.13; do
    python="$(find_python "$version")"
    if [ -z "$python" ]; then
        printf '%-8s not here\n' "$version"
    else
        run "$version" "$python"
        newest="$python"
    fi
done
[ -n "$newest" ] || exit 1
run newest "$newest" TORCH=torch AMOS_FAIRSEQ_CONSTRAINTS=/dev/null
exit "$failed"
