"""The row functions in one kernel each: the same functions as in `ops/pytorch.py`, from the sources in `csrc/`.

One source is compiled for CUDA (fp32, bf16, fp16) and for the CPU (fp32), each into a library without PyTorch in it, so
that it serves every release; here their C functions become PyTorch operators, which `torch.compile` keeps whole.
Results differ from PyTorch's by rounding alone, but for longer lists of candidates, and a row's never depend on the
other rows or on the number of threads.
"""

import ctypes
import warnings
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, float32, int32, int64

from amos_fairseq.ops.noise import Noise, check_draw
from amos_fairseq.ops.pytorch import RowReading

MOST = 64  # tokens of `top_tokens`: their lists have to fit into a block's memory
CAPACITY = 1024  # candidates of a row; at temperature 0.3 one row in ten million has more
BUILD_COMMAND = {kind: f"python -m amos_fairseq.csrc.build {kind}" for kind in ("cpu", "cuda")}
FOLDER = Path(__file__).resolve().parents[1] / "csrc"
SCALARS = {  # the numbers that csrc/library.h gives them
    "cpu": {float32: 0},
    "cuda": {float32: 0, torch.bfloat16: 1, torch.float16: 2},
}


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
    except (OSError, AttributeError) as error:  # AttributeError: of an older build, which lacks a function
        warnings.warn(f"the compiled ops cannot be loaded ({error}): build them anew, `{BUILD_COMMAND[device_type]}`")
        return False
    return True


def _path(device_type: str) -> Path:
    return FOLDER / f"libamos_{device_type}.so"


KERNELS: List["Kernel"] = []


class Array(NamedTuple):
    """A kernel's argument that points to a contiguous tensor; type None: the one of SCALARS that `scalar` says."""

    sizes: str  # a letter or a digit each
    dtype: Optional[torch.dtype] = None


class Kernel:
    """The C function with a declaration's name and arguments, and `place` and `stream` after them: csrc/library.h."""

    def __init__(self, declaration: Callable):
        self.name, self.arguments = declaration.__name__, declaration.__annotations__
        KERNELS.append(self)

    def __call__(self, *arguments) -> None:
        """Run on the tensors' device: on its current stream, or on as many threads as PyTorch's operators have."""
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        library = _library(device.type)
        function = getattr(library, self.name)
        values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
        if device.type == "cuda":
            with torch.cuda.device(device):
                error = function(*values, device.index, torch.cuda.current_stream(device).cuda_stream)
        else:
            error = function(*values, torch.get_num_threads(), None)
        if error:
            raise RuntimeError(f"{self.name} failed: {library.amos_error(error).decode()}")

    def check(self, **tensors: Optional[Tensor]) -> None:
        """One line for a tensor that the kernel would misread; the first one gives the device."""
        rows, sizes = next(tensor for tensor in tensors.values() if tensor is not None), {"2": 2}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            (letters, dtype), place = self.arguments[name], tensor.device
            if tensor.dim() == len(letters):
                sizes = {**dict(zip(letters, tensor.shape)), **sizes}
            shape = tuple(sizes.get(letter, letter) for letter in letters)
            if tuple(tensor.shape) != shape:
                expected = str(shape).replace("'", "")
                raise ValueError(f"{name} is {tuple(tensor.shape)}: it must be {expected}")
            if dtype is None and not supports(place.type, tensor.dtype):
                raise ValueError(f"{name} is {tensor.dtype} on {place}, which no kernel reads: use ops/pytorch.py")
            if dtype is not None and tensor.dtype != dtype:
                raise ValueError(f"{name} is {tensor.dtype}: it must be {dtype}")
            if place != rows.device:
                raise ValueError(f"{name} is on {place}, the rows on {rows.device}: move one of them")
            if not tensor.is_contiguous():
                raise ValueError(f"{name} is not contiguous: call contiguous()")


@lru_cache(maxsize=None)
def _library(device_type: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path(device_type)), mode=ctypes.RTLD_LOCAL)
    library.amos_error.restype = ctypes.c_char_p
    for kernel in KERNELS:
        types = [c_void_p if isinstance(kind, Array) else kind for kind in kernel.arguments.values()]
        getattr(library, kernel.name).argtypes = [*types, c_int, c_void_p]  # place, stream
    return library


def _scalar(tensor: Tensor) -> int:
    return SCALARS[tensor.device.type][tensor.dtype]


_operator = partial(torch.library.custom_op, device_types=tuple(SCALARS))


# Each kernel as C declares it, the function that checks its arguments, and the operator that calls it.


@Kernel
def amos_gumbel_noise(
    seed: c_uint64, noise_rows: Array("M2", int64), noise: Array("MV", float32), rows: c_int64, vocabulary: c_int
): ...


def gumbel_noise(noise: Noise, vocabulary_size: int, dtype: torch.dtype = float32) -> Tensor:
    """(M, V) Gumbel(0, 1) in fp32, the only `dtype`, with the same bits on every device."""
    amos_gumbel_noise.check(noise_rows=noise.rows)
    return _gumbel_noise(noise.seed, noise.rows, vocabulary_size)


@_operator("amos_fairseq::gumbel_noise", mutates_args=())
def _gumbel_noise(seed: int, noise_rows: Tensor, vocabulary_size: int) -> Tensor:
    noise = _empty_noise(seed, noise_rows, vocabulary_size)
    amos_gumbel_noise(seed, noise_rows, noise, *noise.shape)
    return noise


@_gumbel_noise.register_fake
def _empty_noise(seed, noise_rows, vocabulary_size):
    return noise_rows.new_empty(noise_rows.size(0), vocabulary_size, dtype=float32)


@Kernel
def amos_read_rows(
    logits: Array("MGV"), bias: Array("V", float32), targets: Array("M", int64), weights: Array("MG", float32),
    excluded: Array("V", torch.bool), seed: c_uint64, noise_rows: Array("M2", int64), temperature: c_float,
    write_gradient: c_int, losses: Array("MG", float32), predicted: Array("MG", int64), ranks: Array("MG", int64),
    sampled: Array("M", int64), likeliest: Array("M", int64),
    candidates: Array("MC", int32), tail: Array("M", float32), rows: c_int64, heads: c_int, vocabulary: c_int,
    scalar: c_int,
): ...


def read_rows(
    logits: Tensor, bias: Tensor, targets: Tensor, weights: Optional[Tensor], excluded: Optional[Tensor],
    noise: Optional[Noise], temperature: float, candidates: bool, write_gradient: bool,
) -> RowReading:
    """Read (M, G, V) logits, then overwrite them with d losses / d logits if `write_gradient`; see `RowReading`.

    Candidates are those with at least a millionth of the likeliest's probability, in ascending order, the first
    CAPACITY of them if there are more. A row whose target lies outside the vocabulary has losses and gradient NaN
    and ranks 0; one whose tokens are all excluded, or NaN, draws 0.
    """
    seed, noise_rows = (0, None) if noise is None else (noise.seed, noise.rows)
    amos_read_rows.check(
        logits=logits, bias=bias, targets=targets, weights=weights, excluded=excluded, noise_rows=noise_rows
    )
    check_draw(temperature, noise, weights, heads=logits.size(1))
    inputs = logits, bias, targets, weights, excluded, seed, noise_rows, temperature
    return RowReading(*_read_rows(*inputs, candidates, write_gradient))


@_operator("amos_fairseq::read_rows", mutates_args=("logits",))
def _read_rows(
    logits: Tensor, bias: Tensor, targets: Tensor, weights: Optional[Tensor], excluded: Optional[Tensor], seed: int,
    noise_rows: Optional[Tensor], temperature: float, candidates: bool, write_gradient: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    reading = _empty_reading(logits, noise_rows is not None, candidates)
    inputs = logits, bias, targets, weights, excluded, seed, noise_rows, temperature, write_gradient
    outputs = *reading[:-2], *(reading[-2:] if reading.tail.numel() else (None, None))
    amos_read_rows(*inputs, *outputs, *logits.shape, _scalar(logits))
    return tuple(reading)  # type: ignore[return-value]


@_read_rows.register_fake
def _(logits, bias, targets, weights, excluded, seed, noise_rows, temperature, candidates, write_gradient):
    return tuple(_empty_reading(logits, noise_rows is not None, candidates))


def _empty_reading(logits: Tensor, draws: bool, lists: bool) -> RowReading:
    rows, heads, _ = logits.shape
    drawn, listed = rows if draws else 0, rows if draws and lists else 0
    return RowReading(
        losses=logits.new_empty(rows, heads, dtype=float32), predicted=logits.new_empty(rows, heads, dtype=int64),
        ranks=logits.new_empty(rows, heads, dtype=int64), sampled=logits.new_empty(drawn, dtype=int64),
        likeliest=logits.new_empty(drawn, dtype=int64),
        candidates=logits.new_empty(listed, CAPACITY if draws and lists else 0, dtype=int32),
        tail=logits.new_empty(listed, dtype=float32),
    )


@Kernel
def amos_logsumexp_rows(
    logits: Array("RV"), bias: Array("V", float32), logsumexp: Array("R", float32), largest: Array("R", float32),
    likeliest: Array("R", int64), rows: c_int64, vocabulary: c_int, scalar: c_int,
): ...


def logsumexp_rows(logits: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """logsumexp, largest and its id of each row of (R, V) logits."""
    amos_logsumexp_rows.check(logits=logits, bias=bias)
    return _logsumexp_rows(logits, bias)


@_operator("amos_fairseq::logsumexp_rows", mutates_args=())
def _logsumexp_rows(logits: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    results = _empty_logsumexp(logits, bias)
    amos_logsumexp_rows(logits, bias, *results, *logits.shape, _scalar(logits))
    return results


@_logsumexp_rows.register_fake
def _empty_logsumexp(logits, bias):
    rows = logits.size(0)
    logsumexp, largest = (logits.new_empty(rows, dtype=float32) for _ in range(2))
    return logsumexp, largest, logits.new_empty(rows, dtype=int64)


@Kernel
def amos_softmax_rows(
    logits: Array("RV"), bias: Array("V", float32), logsumexp: Array("R", float32),
    rows: c_int64, vocabulary: c_int, scalar: c_int,
): ...


def softmax_rows_(logits: Tensor, bias: Tensor, logsumexp: Tensor) -> None:
    """Overwrite (R, V) logits with exp(z - logsumexp), their softmax; logsumexp: (R,)."""
    amos_softmax_rows.check(logits=logits, bias=bias, logsumexp=logsumexp)
    _softmax_rows_(logits, bias, logsumexp)


@_operator("amos_fairseq::softmax_rows_", mutates_args=("logits",))
def _softmax_rows_(logits: Tensor, bias: Tensor, logsumexp: Tensor) -> None:
    amos_softmax_rows(logits, bias, logsumexp, *logits.shape, _scalar(logits))


_softmax_rows_.register_fake(lambda *_: None)


@Kernel
def amos_gumbel_softmax(
    logits: Array("MV"), seed: c_uint64, noise_rows: Array("M2", int64), temperature: c_float,
    probabilities: Array("MV"), rows: c_int64, vocabulary: c_int, scalar: c_int,
): ...


def gumbel_softmax(logits: Tensor, noise: Noise, temperature: float) -> Tensor:
    """(M, V) softmax((logits + noise) / temperature), in the type of `logits`."""
    amos_gumbel_softmax.check(logits=logits, noise_rows=noise.rows)
    check_draw(temperature)
    return _gumbel_softmax(logits, noise.seed, noise.rows, temperature)


@_operator("amos_fairseq::gumbel_softmax", mutates_args=())
def _gumbel_softmax(logits: Tensor, seed: int, noise_rows: Tensor, temperature: float) -> Tensor:
    soft = torch.empty_like(logits)
    amos_gumbel_softmax(logits, seed, noise_rows, temperature, soft, *soft.shape, _scalar(logits))
    return soft


_gumbel_softmax.register_fake(lambda logits, *_: torch.empty_like(logits))


@Kernel
def amos_soft_sample_gradient(
    gradient: Array("ME", float32), hidden: Array("ME", float32), table: Array("VE"), bias: Array("V", float32),
    candidates: Array("MC", int32), seed: c_uint64, noise_rows: Array("M2", int64), temperature: c_float,
    result: Array("ME", float32), rows: c_int64, vocabulary: c_int, width: c_int, capacity: c_int, scalar: c_int,
): ...


def soft_sample_gradient(
    gradient: Tensor, hidden: Tensor, table: Tensor, bias: Tensor, candidates: Tensor, noise: Noise, temperature: float
) -> Tensor:
    """d (gradient . sum_t p_t x_t) / d hidden, (M, E) in fp32, over each row's candidates t: x_t = table[t],

        p = softmax((x . hidden + bias + noise) / temperature)
        sum_t p_t (s_t - sum_u p_u s_u) x_t / temperature,   s_t = x_t . gradient

    Candidates outside the vocabulary, such as the -1 that fill a list up, are skipped; a row without any gives 0.
    """
    gradient, hidden = gradient.float().contiguous(), hidden.float().contiguous()
    amos_soft_sample_gradient.check(
        table=table, hidden=hidden, gradient=gradient, bias=bias, candidates=candidates, noise_rows=noise.rows
    )
    check_draw(temperature)
    return _soft_sample_gradient(gradient, hidden, table, bias, candidates, noise.seed, noise.rows, temperature)


@_operator("amos_fairseq::soft_sample_gradient", mutates_args=())
def _soft_sample_gradient(
    gradient: Tensor, hidden: Tensor, table: Tensor, bias: Tensor, candidates: Tensor, seed: int, noise_rows: Tensor,
    temperature: float,
) -> Tensor:
    result = torch.empty_like(hidden)
    inputs = gradient, hidden, table, bias, candidates, seed, noise_rows, temperature
    amos_soft_sample_gradient(*inputs, result, len(hidden), *table.shape, candidates.size(1), _scalar(table))
    return result


_soft_sample_gradient.register_fake(lambda gradient, hidden, *_: torch.empty_like(hidden))


@Kernel
def amos_top_tokens(
    logits: Array("MV"), bias: Array("V", float32), left_out: Array("M", int64), excluded: Array("V", torch.bool),
    seed: c_uint64, noise_rows: Array("M2", int64), top: Array("MK", int64), rows: c_int64, vocabulary: c_int,
    count: c_int, scalar: c_int,
): ...


def top_tokens(
    logits: Tensor, bias: Tensor, left_out: Tensor, excluded: Optional[Tensor], noise: Optional[Noise], count: int
) -> Tensor:
    """(M, K) ids of the K = `count` largest of logits + bias + noise in each row, at most MOST, the largest first."""
    seed, noise_rows = (0, None) if noise is None else (noise.seed, noise.rows)
    amos_top_tokens.check(logits=logits, bias=bias, left_out=left_out, excluded=excluded, noise_rows=noise_rows)
    return _top_tokens(logits, bias, left_out, excluded, seed, noise_rows, count)


@_operator("amos_fairseq::top_tokens", mutates_args=())
def _top_tokens(
    logits: Tensor, bias: Tensor, left_out: Tensor, excluded: Optional[Tensor], seed: int,
    noise_rows: Optional[Tensor], count: int,
) -> Tensor:
    top = left_out.new_empty(len(left_out), count)
    amos_top_tokens(logits, bias, left_out, excluded, seed, noise_rows, top, *logits.shape, count, _scalar(logits))
    return top


_top_tokens.register_fake(lambda logits, bias, left_out, *rest: left_out.new_empty(left_out.size(0), rest[-1]))
