"""The row functions in one kernel each: the same functions as in `ops/pytorch.py`, from the sources in `csrc/`.

One source is compiled for CUDA (fp32, bf16, fp16) and for the CPU (fp32), each into a library without PyTorch in it, so
that it serves every release; here their C functions become PyTorch operators, which `torch.compile` keeps whole.
Results differ from PyTorch's by rounding alone, and a row's never depend on the other rows or on the number of threads.
"""

import ctypes
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Optional, Tuple

import torch
from torch import Tensor

from amos_fairseq.ops.noise import Noise
from amos_fairseq.ops.readings import RowReading

CAPACITY = 1024  # candidates of a row; at temperature 0.3 one row in ten million has more
BUILD_COMMAND = {kind: f"python -m amos_fairseq.csrc.build {kind}" for kind in ("cpu", "cuda")}
FOLDER = Path(__file__).resolve().parents[1] / "csrc"
SCALARS = {  # the numbers that csrc/library.h gives them
    "cpu": {torch.float32: 0},
    "cuda": {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2},
}
# The C functions' arguments before (place, stream): p pointer, l int64, i int, u uint64, f float.
ARGUMENTS = {
    "amos_gumbel_noise": "uppli",
    "amos_read_rows": "pppppupfipppppppplii" + "i",
    "amos_logsumexp_rows": "ppppp" + "lii",
    "amos_softmax_rows": "ppplii",
    "amos_gumbel_softmax": "pupfplii",
    "amos_soft_sample_gradient": "pppppupfpliiii",
}
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "u": ctypes.c_uint64, "f": ctypes.c_float}


def supports(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernels for this kind of device read this type."""
    return dtype in SCALARS.get(device_type, ())


@lru_cache(maxsize=None)
def available(device_type: str) -> bool:
    """Whether the kernels for this kind of device were built, and the device can run them: CUDA from sm_80 on."""
    if device_type not in BUILD_COMMAND or not _path(device_type).exists():
        return False
    if device_type == "cuda" and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        return False
    try:
        _library(device_type)
    except OSError as error:
        warnings.warn(f"the compiled ops cannot be loaded ({error}): build them anew, `{BUILD_COMMAND[device_type]}`")
        return False
    return True


def _path(device_type: str) -> Path:
    return FOLDER / f"libamos_{device_type}.so"


@lru_cache(maxsize=None)
def _library(device_type: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path(device_type)), mode=ctypes.RTLD_LOCAL)
    library.amos_error.restype = ctypes.c_char_p
    for name, letters in ARGUMENTS.items():
        getattr(library, name).argtypes = [TYPES[letter] for letter in letters + "ip"]
    return library


def _run(name: str, device: torch.device, *arguments) -> None:
    """Call a C function on the device's current stream, or on the CPU with as many threads as PyTorch's operators."""
    library = _library(device.type)
    arguments = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    if device.type == "cuda":
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            error = getattr(library, name)(*arguments, device.index, stream)
    else:
        error = getattr(library, name)(*arguments, torch.get_num_threads(), None)
    if error:
        raise RuntimeError(f"{name} failed: {library.amos_error(error).decode()}")


def _scalar(tensor: Tensor) -> int:
    return SCALARS[tensor.device.type][tensor.dtype]


def _check(name: str, tensor: Optional[Tensor], shape: Tuple[int, ...], dtype: torch.dtype, like: Tensor) -> None:
    """One line for an argument that a kernel would misread. `like` gives the device."""
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)}: it must be {shape}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}: it must be {dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the rows on {like.device}: move one of them")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous: call contiguous()")


def _check_rows(name: str, rows: Tensor, dimensions: int) -> None:
    """The argument that gives the sizes and the device."""
    if rows.dim() != dimensions:
        raise ValueError(f"{name} is {tuple(rows.shape)}: it must have {dimensions} dimensions")
    if not supports(rows.device.type, rows.dtype):
        raise ValueError(f"{name} is {rows.dtype} on {rows.device}, which no kernel reads: use ops/pytorch.py")
    if not rows.is_contiguous():
        raise ValueError(f"{name} is not contiguous: call contiguous()")


def _check_noise(noise: Optional[Noise], like: Tensor) -> None:
    if noise is not None:
        _check("noise.rows", noise.rows, (like.size(0), 2), torch.int64, like)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def gumbel_noise(noise: Noise, vocabulary_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M, V) Gumbel(0, 1) in fp32, the only `dtype`, with the same bits on every device."""
    if noise.rows.dim() != 2:
        raise ValueError(f"noise.rows is {tuple(noise.rows.shape)}: it must be (M, 2)")
    _check_noise(noise, noise.rows)
    return _gumbel_noise(noise.seed, noise.rows, vocabulary_size)


@torch.library.custom_op("amos_fairseq::gumbel_noise", mutates_args=(), device_types=("cpu", "cuda"))
def _gumbel_noise(seed: int, noise_rows: Tensor, vocabulary_size: int) -> Tensor:
    noise = noise_rows.new_empty(len(noise_rows), vocabulary_size, dtype=torch.float32)
    _run("amos_gumbel_noise", noise.device, seed, noise_rows, noise, len(noise), vocabulary_size)
    return noise


@_gumbel_noise.register_fake
def _(seed, noise_rows, vocabulary_size):
    return noise_rows.new_empty(noise_rows.size(0), vocabulary_size, dtype=torch.float32)


def read_rows(
    logits: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Optional[Tensor],
    excluded: Optional[Tensor],
    noise: Optional[Noise],
    temperature: float,
    candidates: bool,
    write_gradient: bool,
) -> RowReading:
    """Read (M, G, V) logits, then overwrite them with d losses / d logits if `write_gradient`; see `RowReading`.

    Candidates are those with at least a millionth of the likeliest's probability, in ascending order, the first
    CAPACITY of them if there are more. A row whose target lies outside the vocabulary has losses, margin and gradient
    NaN and ranks 0; one whose tokens are all excluded draws -1.
    """
    _check_rows("logits", logits, 3)
    rows, heads, vocabulary_size = logits.shape
    _check("bias", bias, (vocabulary_size,), torch.float32, logits)
    _check("targets", targets, (rows,), torch.int64, logits)
    _check("weights", weights, (rows, heads), torch.float32, logits)
    _check("excluded", excluded, (vocabulary_size,), torch.bool, logits)
    _check_noise(noise, logits)
    _check_temperature(temperature)
    if weights is None and heads > 1 and noise is not None:
        raise ValueError(f"weights are missing: to draw from {heads} heads, say how they are mixed")
    seed, noise_rows = (0, None) if noise is None else (noise.seed, noise.rows)
    return RowReading(
        *_read_rows(
            logits, bias, targets, weights, excluded, seed, noise_rows, temperature, candidates, write_gradient
        )
    )


@torch.library.custom_op("amos_fairseq::read_rows", mutates_args=("logits",), device_types=("cpu", "cuda"))
def _read_rows(
    logits: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Optional[Tensor],
    excluded: Optional[Tensor],
    seed: int,
    noise_rows: Optional[Tensor],
    temperature: float,
    candidates: bool,
    write_gradient: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    reading = _empty_reading(logits, noise_rows is not None, candidates)
    inputs = logits, bias, targets, weights, excluded, seed, noise_rows, temperature, write_gradient
    outputs = *reading[:-2], *(reading[-2:] if reading.tail.numel() else (None, None))
    _run("amos_read_rows", logits.device, *inputs, *outputs, *logits.shape, _scalar(logits))
    return tuple(reading)


@_read_rows.register_fake
def _(logits, bias, targets, weights, excluded, seed, noise_rows, temperature, candidates, write_gradient):
    return tuple(_empty_reading(logits, noise_rows is not None, candidates))


def _empty_reading(logits: Tensor, draws: bool, lists: bool) -> RowReading:
    rows, heads, _ = logits.shape
    drawn, listed = rows if draws else 0, rows if draws and lists else 0
    return RowReading(
        losses=logits.new_empty(rows, heads, dtype=torch.float32),
        predicted=logits.new_empty(rows, heads, dtype=torch.int64),
        ranks=logits.new_empty(rows, heads, dtype=torch.int64),
        sampled=logits.new_empty(drawn, dtype=torch.int64),
        likeliest=logits.new_empty(drawn, dtype=torch.int64),
        margins=logits.new_empty(drawn, dtype=torch.float32),
        candidates=logits.new_empty(listed, CAPACITY if draws and lists else 0, dtype=torch.int32),
        tail=logits.new_empty(listed, dtype=torch.float32),
    )


def logsumexp_rows(logits: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """logsumexp, largest and its id of each row of (R, V) logits."""
    _check_rows("logits", logits, 2)
    _check("bias", bias, (logits.size(1),), torch.float32, logits)
    return _logsumexp_rows(logits, bias)


@torch.library.custom_op("amos_fairseq::logsumexp_rows", mutates_args=(), device_types=("cpu", "cuda"))
def _logsumexp_rows(logits: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    results = _empty_logsumexp(logits)
    _run("amos_logsumexp_rows", logits.device, logits, bias, *results, *logits.shape, _scalar(logits))
    return results


@_logsumexp_rows.register_fake
def _empty_logsumexp(logits, bias=None):
    rows = logits.size(0)
    logsumexp, largest = (logits.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return logsumexp, largest, logits.new_empty(rows, dtype=torch.int64)


def softmax_rows_(logits: Tensor, bias: Tensor, logsumexp: Tensor) -> None:
    """Overwrite (R, V) logits with exp(z - logsumexp), their softmax; logsumexp: (R,)."""
    _check_rows("logits", logits, 2)
    _check("bias", bias, (logits.size(1),), torch.float32, logits)
    _check("logsumexp", logsumexp, (logits.size(0),), torch.float32, logits)
    _softmax_rows_(logits, bias, logsumexp)


@torch.library.custom_op("amos_fairseq::softmax_rows_", mutates_args=("logits",), device_types=("cpu", "cuda"))
def _softmax_rows_(logits: Tensor, bias: Tensor, logsumexp: Tensor) -> None:
    _run("amos_softmax_rows", logits.device, logits, bias, logsumexp, *logits.shape, _scalar(logits))


@_softmax_rows_.register_fake
def _(logits, bias, logsumexp):
    return None


def gumbel_softmax(logits: Tensor, noise: Noise, temperature: float) -> Tensor:
    """(M, V) softmax((logits + noise) / temperature), in the type of `logits`."""
    _check_rows("logits", logits, 2)
    _check_noise(noise, logits)
    _check_temperature(temperature)
    return _gumbel_softmax(logits, noise.seed, noise.rows, temperature)


@torch.library.custom_op("amos_fairseq::gumbel_softmax", mutates_args=(), device_types=("cpu", "cuda"))
def _gumbel_softmax(logits: Tensor, seed: int, noise_rows: Tensor, temperature: float) -> Tensor:
    soft = torch.empty_like(logits)
    _run(
        "amos_gumbel_softmax", logits.device, logits, seed, noise_rows, temperature, soft, *soft.shape, _scalar(logits)
    )
    return soft


@_gumbel_softmax.register_fake
def _(logits, seed, noise_rows, temperature):
    return torch.empty_like(logits)


def soft_sample_gradient(
    gradient: Tensor,
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    candidates: Tensor,
    noise: Noise,
    temperature: float,
) -> Tensor:
    """d (gradient . sum_t p_t x_t) / d hidden, (M, E) in fp32, over each row's candidates t: x_t = table[t],

        p = softmax((x . hidden + bias + noise) / temperature)
        sum_t p_t (s_t - sum_u p_u s_u) x_t / temperature,   s_t = x_t . gradient

    Candidates outside the vocabulary, such as the -1 that fill a list up, are skipped; a row without any gives 0.
    """
    _check_rows("table", table, 2)
    if hidden.dim() != 2 or hidden.size(1) != table.size(1):
        raise ValueError(f"hidden is {tuple(hidden.shape)}, table {tuple(table.shape)}: they must be (M, E) and (V, E)")
    if candidates.dim() != 2:
        raise ValueError(f"candidates is {tuple(candidates.shape)}: it must be (M, C)")
    gradient, hidden = gradient.float().contiguous(), hidden.float().contiguous()
    _check("hidden", hidden, tuple(hidden.shape), torch.float32, table)
    _check("gradient", gradient, tuple(hidden.shape), torch.float32, table)
    _check("bias", bias, (table.size(0),), torch.float32, table)
    _check("candidates", candidates, (hidden.size(0), candidates.size(1)), torch.int32, table)
    _check_noise(noise, hidden)
    _check_temperature(temperature)
    return _soft_sample_gradient(gradient, hidden, table, bias, candidates, noise.seed, noise.rows, temperature)


@torch.library.custom_op("amos_fairseq::soft_sample_gradient", mutates_args=(), device_types=("cpu", "cuda"))
def _soft_sample_gradient(
    gradient: Tensor,
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    candidates: Tensor,
    seed: int,
    noise_rows: Tensor,
    temperature: float,
) -> Tensor:
    result = torch.empty_like(hidden)
    inputs = gradient, hidden, table, bias, candidates, seed, noise_rows, temperature
    sizes = len(hidden), *table.shape, candidates.size(1)
    _run("amos_soft_sample_gradient", table.device, *inputs, result, *sizes, _scalar(table))
    return result


@_soft_sample_gradient.register_fake
def _(gradient, hidden, table, bias, candidates, seed, noise_rows, temperature):
    return torch.empty_like(hidden)
