#!/usr/bin/env bash
# All that gpu.sh needs on a machine without a network, within 64 MiB: bash examples/benchmarks/pack.sh [FOLDER]
# That machine has Python 3.12 on x86-64, torch, triton and nvcc. There: bash FOLDER/run.sh RESULTS
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
folder="${1:-gpu-pack}"
limit_mib=64
# What fairseq and this package import to train, one after another; nothing of it needs more.
wheels=(
    fairseq-fixed==0.12.3.1 numpy sentencepiece safetensors hydra-core==1.3.2 omegaconf==2.3.0 PyYAML bitarray cffi
    pycparser regex sacrebleu lxml portalocker tabulate colorama tqdm packaging
)
mkdir -p "$folder/wheels" "$folder/repository"
python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 --dest "$folder/wheels" "${wheels[@]}"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" antlr4-python3-runtime==4.9.3 # has no wheel
git -C "$root" archive HEAD amos_fairseq examples setup.py pyproject.toml README.md | tar -x -C "$folder/repository"
if [ ! -f "$folder/data/manifest.json" ]; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    # a text that is there is whole, and what an interrupted `prepare` knows it by is when it was written
    [ -f "$folder/text.txt" ] || python3 -m amos_fairseq.cli.main corpus --out "$folder/text.txt" --megabytes 13
    python3 -m amos_fairseq.cli.main prepare "$folder/text.txt" --out "$folder/data" --vocab-size 32768 \
        --tokens-per-sample 512
    rm "$folder/text.txt"
fi
cat > "$folder/run.sh" <<'RUN'
#!/usr/bin/env bash
# bash run.sh RESULTS
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
site="$(mktemp -d)"
python3 -m pip install --quiet --no-index --no-deps --target "$site" "$here"/wheels/*.whl
# Names of scikit-learn and SciPy are imported for tasks that nothing here calls; both are too large to travel.
python3 -c 'import sklearn, scipy' 2> /dev/null || {
    mkdir "$site/sklearn" "$site/scipy"
    touch "$site/sklearn/__init__.py" "$site/scipy/__init__.py"
    for module in sklearn/metrics scipy/stats scipy/special; do
        echo 'def __getattr__(name): return None' > "$site/$module.py"
    done
}
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" \
    bash "$here/repository/examples/benchmarks/gpu.sh" "${1:-gpu-results}" --data "$here/data" "${@:2}"
RUN
mib="$(du -sm --apparent-size "$folder" | cut -f1)"
echo "$folder: $mib MiB"
((mib <= limit_mib)) || { echo "error: $folder is larger than $limit_mib MiB" >&2; exit 1; }
