"""Registers, spills and shared memory of the attention kernels, compiled for A100s and H100s without a GPU:

    python examples/benchmarks/attention_resources.py bf16-64 fp32-128 bf16-64-selected

Of each type, width of a head and, where it says so, selected queries: a line of JSON for each kernel and architecture.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from amos_fairseq.ops import attention_triton as kernels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {  # of arguments; those of the heads have the case's type, all others are i32
    "*fp32": ("row", "logsumexp", "delta", "d_table"), "*u8": ("hidden_keys",), "*i64": ("seed", "positions"),
    "*i32": ("buckets", "kept"), "fp32": ("scale", "rescale", "score_scale"),
}
OF_HEADS = ("packed", "query", "result", "gradient", "d_packed", "d_query")


def compiled(kernel, arch: int, dtype: str, width: int, selected: bool):
    """With padding and dropout, as it costs most."""
    block_d = triton.next_power_of_2(width)
    tile = kernels.DRAWN
    if kernel is not kernels.draw:
        tile = kernels.tile_of(kernel, block_d, DTYPES[dtype], selected, arch)
    constants = dict(
        WIDTH=width, BLOCK_D=block_d, BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PADDED=True, SELECTED=selected,
        DROPOUT=True, NAMED=False, BLOCK_BUCKETS=32, PARTS=1, samples=None,
        **({} if selected else dict(query=None, positions=None)),
    )
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for kind, names in TYPES.items() for name in names}
    types.update({name: f"*{dtype}" for name in OF_HEADS}, **dict.fromkeys(constants, "constexpr"))
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    # PyTorch's memory begins at multiples of 16 bytes, and recipes' lengths are such multiples.
    multiples = [
        index for index, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name in ("keys", "queries")
    ]
    source = ASTSource(kernel, signature, constants, {(index,): [["tt.divisibility", 16]] for index in multiples})
    options = dict(num_warps=tile.num_warps, num_stages=tile.num_stages)
    return tile, triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(kernel, arch: int, dtype: str, width: int, selected: bool) -> dict:
    tile, program = compiled(kernel, arch, dtype, width, selected)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "kernel": kernel.fn.__name__, "arch": arch, "dtype": dtype, "width": width, "selected": selected,
        "tile": [tile.BLOCK_M, tile.BLOCK_N], "warps": tile.num_warps, "stages": tile.num_stages,
        "registers": int(re.search(r"REG:(\d+)", said)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", said)[1]),  # nothing else lies there
        "shared_bytes": program.metadata.shared,
    }


if __name__ == "__main__":
    for case in sys.argv[1:]:
        dtype, width, *selected = case.split("-")
        for kernel in (kernels.draw, kernels.forward, kernels.d_queries, kernels.d_keys, kernels.d_bias):
            for arch in (80, 90):
                print(json.dumps(resources(kernel, arch, dtype, int(width), bool(selected))), flush=True)
