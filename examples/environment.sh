# Sourced by examples/quickstart/run.sh and tests/run.sh: `prepare_environment [EXTRA]` installs this repository, with
# the optional requirements EXTRA, into a virtual environment and puts that first on PATH. A second call takes no time.
#
#   AMOS_FAIRSEQ_VENV   the environment; default: .venv in the repository. An active environment is never changed
#                       unless it is named here: AMOS_FAIRSEQ_VENV="$VIRTUAL_ENV"
#   PYTHON              creates the environment; default: python3
#   AMOS_FAIRSEQ_CPU    0 or 1: compile the ops for the CPU; default: where there is a C++ compiler
#   AMOS_FAIRSEQ_CUDA   0 or 1: compile the ops for CUDA, by nvcc; default: where CUDA_HOME has it
#   TORCH               what pip installs if the environment has no torch; default: torch==2.13.0. For a CUDA build
#                       install torch into the environment first, or e.g. TORCH="torch --index-url https://..."
#   AMOS_FAIRSEQ_CONSTRAINTS   versions of everything else; default: examples/constraints.txt, /dev/null: the newest

prepare_environment() {
    local extra="${1:-}" root venv python stamp state constraints module cpu=0 cuda=0
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    venv="${AMOS_FAIRSEQ_VENV:-$root/.venv}"
    python="$venv/bin/python"
    constraints="${AMOS_FAIRSEQ_CONSTRAINTS:-$root/examples/constraints.txt}"
    stamp="$venv/.amos_fairseq${extra:+-$extra}"
    state="$root $(cat "$root"/setup.py "$root"/pyproject.toml "$constraints" "$root"/amos_fairseq/csrc/*.{py,h,cpp,cu} | cksum)"

    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
        echo "Installing amos_fairseq into $venv (AMOS_FAIRSEQ_VENV chooses another place)"
        if ! "$python" -m pip --version >/dev/null 2>&1; then
            python="${PYTHON:-python3}"
            require_python "$python"
            "$python" -m venv "$venv" || fail "cannot create $venv with '$python -m venv' (Debian, Ubuntu: apt install python3-venv)"
            python="$venv/bin/python"
        fi
        require_python "$python"
        "$python" -c "import fairseq" >/dev/null 2>&1 || require_compiler "$python"

        if ! "$python" -c "import torch" 2>/dev/null; then
            echo "  ${TORCH:-torch==2.13.0}"
            # shellcheck disable=SC2086  # TORCH may hold several words
            "$python" -m pip install --quiet --quiet ${TORCH:-torch==2.13.0}
        fi
        # Without build isolation fairseq is compiled against this torch instead of a second download of it; with
        # CUDA_HOME set, fairseq would also compile kernels that are not used here.
        echo "  fairseq and the rest (if pip has no fairseq for this Python, it is compiled: about three minutes on two cores)"
        "$python" -m pip install --quiet --quiet --constraint "$constraints" "setuptools>=64" wheel cython numpy ninja
        command -v "${CXX:-c++}" >/dev/null && cpu=1
        [ ! -x "${CUDA_HOME:-}/bin/nvcc" ] || cuda=1
        env -u CUDA_HOME PATH="${CUDA_HOME:+$CUDA_HOME/bin:}$PATH" \
            AMOS_FAIRSEQ_CPU="${AMOS_FAIRSEQ_CPU:-$cpu}" AMOS_FAIRSEQ_CUDA="${AMOS_FAIRSEQ_CUDA:-$cuda}" \
            "$python" -m pip install --quiet --quiet --constraint "$constraints" --no-build-isolation \
            --editable "$root${extra:+[$extra]}"
        # fairseq asks for torchaudio, whatever torch there is, and imports it for speech alone. One that is built for
        # another torch, or for CUDA, breaks transformers' pipelines and sentence-transformers.
        for module in torchaudio torchvision; do
            "$python" -c "import $module" >/dev/null 2>&1 || "$python" -m pip uninstall --quiet --quiet --yes $module
        done
        echo "$state" > "$stamp"
    fi
    PATH="$(cd "$venv" && pwd)/bin:$PATH"
    export PATH
}

require_python() {
    command -v "$1" >/dev/null || fail "Python 3.10 to 3.13 is needed, '$1' is not there; PYTHON names another one"
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
        fail "Python 3.10 to 3.13 is needed, '$1' is $("$1" --version 2>&1 || true); PYTHON names another one"
}

require_compiler() {
    # The one ready-made build of fairseq is for Python 3.12 on x86-64 Linux.
    "$1" -c 'import platform, sys
sys.exit((sys.platform, platform.machine(), *sys.version_info[:2]) != ("linux", "x86_64", 3, 12))' && return
    command -v "${CXX:-c++}" >/dev/null || fail "a C++ compiler is needed to install fairseq (Debian, Ubuntu: apt install g++)"
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        fail "Python.h is needed to install fairseq (Debian, Ubuntu: apt install python3-dev)"
}

fail() {
    echo "error: $*" >&2
    exit 1
}
