"""Compile the row kernels: `python -m amos_fairseq.csrc.build cuda` (or cpu), into this folder.

The libraries hold no PyTorch: one build serves every release of it, and no GPU is needed to build. CUDA code is made
for A100 (sm_80) and H100/H200 (sm_90), with PTX for later devices.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

FOLDER = Path(__file__).resolve().parent
KINDS = ("cpu", "cuda")
# Nothing may contract a * b + c into one rounding: the noise is the same on every machine, bit for bit.
CPU_OPTIONS = "-std=c++17 -O3 -ffp-contract=off -fno-trapping-math -fno-math-errno -fopenmp-simd".split()
CPU_OPTIONS += "-fvisibility=hidden -fPIC -shared -pthread".split()
CUDA_OPTIONS = "-std=c++17 -O3 -fmad=false -shared -Xcompiler=-fPIC,-fvisibility=hidden".split()
CUDA_CODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    "--threads=0",  # both at the same time
]


def library(kind: str, folder: Path = FOLDER) -> Path:
    """Where `ops/compiled.py` looks for the library."""
    return Path(folder) / f"libamos_{kind}.so"


def compiler(kind: str) -> List[str]:
    """The compiler's path and options. Raises ValueError, in one line with the remedy, where there is none."""
    if kind == "cpu":
        found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
        if found is None:
            raise ValueError("no C++ compiler found: install g++, or set CXX to one")
        return [found, *CPU_OPTIONS]
    if kind != "cuda":
        raise ValueError(f"kind is {kind!r}: choose {' or '.join(KINDS)}")
    folders = [os.path.join(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    folders += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    if found is None:
        raise ValueError("nvcc not found: install the CUDA toolkit, or set CUDA_HOME to its folder")
    return [found, *CUDA_OPTIONS]


def build(kind: str, out: Optional[Path] = None, code: Optional[List[str]] = None) -> Path:
    """Compile the library of this kind ("cpu" or "cuda") to `out`, by default where it is looked for; return its path.

    code: nvcc's options that choose devices, or further options of the C++ compiler. Raises ValueError where the
    compiler is missing, RuntimeError with its messages where it fails. The file appears whole or not at all.
    """
    command = compiler(kind)
    source = FOLDER / {"cpu": "cpu.cpp", "cuda": "cuda.cu"}[kind]
    out = library(kind) if out is None else Path(out)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    options = code if code is not None else CUDA_CODE if kind == "cuda" else []
    try:
        done = subprocess.run([*command, *options, str(source), "-o", str(unfinished)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed on {source.name}:\n{done.stderr or done.stdout}")
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    return out


def main() -> None:
    kinds = sys.argv[1:]
    if not kinds or set(kinds) - set(KINDS):
        raise SystemExit(f"usage: python -m amos_fairseq.csrc.build {{{','.join(KINDS)}}}")
    for kind in kinds:
        try:
            print(build(kind))
        except (ValueError, RuntimeError) as error:
            raise SystemExit(f"amos_fairseq: error: {error}") from None


if __name__ == "__main__":
    main()
