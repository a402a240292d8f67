"""Attention with a learned relative position bias that is never spread over the (query, key) pairs in memory.

`relative_attention` runs the Triton kernels of `ops/attention_triton.py`, `reference_attention` says what they compute.
Where `implementation.attention_kernels` finds none, `modules/attention.py` takes PyTorch's attention with the bias as a
matrix.
"""

import importlib
import math
from functools import lru_cache
from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from amos_fairseq.ops.noise import WORD, philox, threshold_of
from amos_fairseq.ops.precision import full_precision

PAD = 256  # twice the largest tile: distances of queries and keys past the end stay within the row
DTYPES = torch.float32, torch.bfloat16, torch.float16
WIDTHS = range(16, 129, 8)  # channels of a head
TRITON = (3, 5)  # 3.3 cannot compile them
MAX_LENGTH = 2**16  # of which dropout's counter names a position


class RelativeBias(NamedTuple):
    """bias[h, query, key] = table[buckets[key - query], h], and which keys are hidden; `relative_bias` makes it.

    Columns of `row` and entries of `buckets` are the distances key - query from 1 - T - PAD to T - 1 + PAD.
    """

    table: Tensor  # (num_buckets, H) fp32, which gets the gradient
    row: Tensor  # (H, 2 * (T + PAD) - 1) fp32: its entries by distance, times log2(e)
    buckets: Tensor  # (2 * (T + PAD) - 1,) int32
    hidden_keys: Optional[Tensor]  # (B, T) bool


class AttentionDropout(NamedTuple):
    """Each weight is 0 with probability `share`, as seed, sample, head and both positions say: see `dropout_mask`."""

    share: float
    seed: Tensor  # (1,) int64, not negative, one for each (update, layer, pass); on the device, so that nothing waits
    sample_ids: Optional[Tensor] = None  # (B,) int64; None: the sequences' numbers in the batch


def relative_bias(table: Tensor, buckets: Tensor, hidden_keys: Optional[Tensor] = None) -> RelativeBias:
    """table: (num_buckets, H), in fp32 or to be read so   buckets: (2 T - 1,) by distance   hidden_keys: (B, T) bool"""
    table = full_precision(table)
    buckets = torch.cat([buckets[:1].expand(PAD), buckets, buckets[-1:].expand(PAD)]).int()
    row = table.detach()[buckets].t().contiguous() / math.log(2)
    return RelativeBias(table, row, buckets, hidden_keys)


def relative_attention(
    packed: Tensor, bias: RelativeBias, query: Optional[Tensor] = None, positions: Optional[Tensor] = None,
    dropout: Optional[AttentionDropout] = None,
) -> Tensor:
    """dropout(softmax(query key^T / sqrt(D) + bias)) value of each head, by one kernel: `reference_attention`.

    packed: (B, T, 3, H, D), query, key and value of every position   ->   (B, T, H, D)
    or (B, T, 2, H, D), key and value, for `query` (B, L, H, D) at `positions` (B, L) of their sequences: (B, L, H, D)

    A query all of whose keys are hidden gets 0. The gradient of a run is the same to the last bit in the next one; the
    table's is the sum over all pairs, by bucket, and there is no second derivative.
    """
    dropout = dropout if dropout is not None and dropout.share else None
    _check(packed, bias, query, positions, dropout)
    kept = None
    if dropout is not None:
        batches, length, _, heads, _ = packed.shape
        queries = length if query is None else query.size(1)
        kept = _draw(dropout.seed, dropout.sample_ids, positions, batches, heads, queries, length, dropout.share)
    share = 0.0 if dropout is None else dropout.share
    return _attention(packed, query, *bias, positions, share, kept)[0]


def _check(packed, bias, query, positions, dropout) -> None:
    """One line for what the kernels would misread."""
    batches, length, _, heads, width = packed.shape
    if (query is None) != (positions is None):
        raise ValueError("query and positions go together: give both or neither")
    queries, dtype = None if query is None else query.size(1), packed.dtype
    seed, sample_ids = (None, None) if dropout is None else (dropout.seed, dropout.sample_ids)
    distances = 2 * (length + PAD) - 1
    for name, tensor, shape, kind in (
        ("packed", packed, (batches, length, 3 if query is None else 2, heads, width), dtype),
        ("query", query, (batches, queries, heads, width), dtype),
        ("positions", positions, (batches, queries), torch.int64),
        ("bias.table", bias.table, (len(bias.table), heads), torch.float32),
        ("bias.row", bias.row, (heads, distances), torch.float32),
        ("bias.buckets", bias.buckets, (distances,), torch.int32),
        ("hidden_keys", bias.hidden_keys, (batches, length), torch.bool),
        ("dropout.seed", seed, (1,), torch.int64), ("sample_ids", sample_ids, (batches,), torch.int64),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} is of shape {tuple(tensor.shape)}: it must be {tuple(shape)}")
        if tensor.dtype != kind or tensor.device != packed.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}: it must be {kind} on {packed.device}")
    if not supports(packed.dtype, width, length):
        raise ValueError(
            f"no kernel reads heads of {width} channels in {packed.dtype} over {length} positions: "
            "take AMOS_FAIRSEQ_OPS=auto"
        )
    if dropout is not None and not 0 < dropout.share < 1:
        raise ValueError(f"dropout of {dropout.share}: it must be at least 0 and below 1")


def reference_attention(
    packed: Tensor, bias: RelativeBias, query: Optional[Tensor] = None, positions: Optional[Tensor] = None,
    dropout: Optional[AttentionDropout] = None,
) -> Tensor:
    """The meaning of `relative_attention`, on every device, with matrices; softmax in full precision."""
    length = packed.size(1)
    query, key, value = packed.unbind(2) if query is None else (query, *packed.unbind(2))
    keys = torch.arange(length, device=packed.device)
    positions = keys.expand(len(packed), -1) if positions is None else positions
    distances = keys - positions.unsqueeze(-1)  # (B, L, T)
    bias_matrix = bias.table[bias.buckets[distances + length - 1 + PAD].long()].permute(0, 3, 1, 2)
    scores = full_precision(torch.einsum("blhd,bthd->bhlt", query, key)) / query.size(-1) ** 0.5 + bias_matrix
    if bias.hidden_keys is not None:
        hidden = bias.hidden_keys[:, None, None, :]
        scores = scores.masked_fill(hidden & ~hidden.all(-1, keepdim=True), float("-inf"))
    weights = scores.softmax(-1)
    if bias.hidden_keys is not None:
        weights = weights.masked_fill(hidden, 0.0)
    if dropout is not None:
        weights = weights * dropout_mask(dropout, query.size(2), positions, length) / (1 - dropout.share)
    return torch.einsum("bhlt,bthd->blhd", weights.to(value.dtype), value)


def dropout_mask(dropout: AttentionDropout, heads: int, positions: Tensor, length: int) -> Tensor:
    """(B, H, L, T) bool: False at the weights that become 0; positions: (B, L) of the queries.

    A weight depends on seed, sample id, head and the positions of query and key alone: key t = 32 a + 8 w + r has
    word w of Philox4x32-7 at the counter (8 a + r, position + 2^16 head, sample id), and stays if it is >= 2^32 share.
    """
    device = positions.device
    sample_ids = torch.arange(len(positions), device=device) if dropout.sample_ids is None else dropout.sample_ids
    sample_ids, keys = sample_ids.view(-1, 1, 1, 1), torch.arange(length, device=device)
    rows = positions[:, None, :, None] + (torch.arange(heads, device=device) << 16)[:, None, None]
    counter = keys // 32 * 8 + keys % 8, rows.long(), sample_ids & WORD, sample_ids >> 32 & WORD
    words = torch.stack(philox(int(dropout.seed), counter, rounds=7))
    which = (keys // 8 % 4).expand(words.shape[1:])
    return words.gather(0, which.unsqueeze(0)).squeeze(0) >= threshold_of(dropout.share)


def supports(dtype: torch.dtype, width: int, length: int = 1) -> bool:
    """Whether the kernels read heads of so many channels, of this type, over so many positions."""
    return dtype in DTYPES and width in WIDTHS and length <= MAX_LENGTH


@lru_cache(maxsize=None)
def available(device_type: str) -> bool:
    """Whether the kernels can run on this kind of device: on GPUs from sm_80 on, if Triton is there and new enough."""
    if device_type != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        version = importlib.import_module("triton").__version__
    except ImportError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= TRITON


def _kernels():
    """Triton takes a second to import, and those without a GPU need none."""
    from amos_fairseq.ops import attention_triton

    return attention_triton


def _contiguous(*tensors: Optional[Tensor]) -> Tuple[Any, ...]:
    """Kernels read nothing else, and graphs of torch.compile may pad what they hand to an operator."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


@torch.library.custom_op("amos_fairseq::attention_dropout", mutates_args=())
def _draw(
    seed: Tensor, sample_ids: Optional[Tensor], positions: Optional[Tensor], batches: int, heads: int, queries: int,
    length: int, share: float,
) -> Tensor:
    return _kernels().run_draw(seed, *_contiguous(sample_ids, positions), batches, heads, queries, length, share)


@_draw.register_fake
def _(seed, sample_ids, positions, batches, heads, queries, length, share):
    return seed.new_empty(batches, heads, queries, (length + 31) // 32, dtype=torch.int32)


@torch.library.custom_op("amos_fairseq::attention", mutates_args=())
def _attention(
    packed: Tensor, query: Optional[Tensor], table: Tensor, row: Tensor, buckets: Tensor, hidden_keys: Optional[Tensor],
    positions: Optional[Tensor], share: float, kept: Optional[Tensor],
) -> Tuple[Tensor, Tensor]:
    bias = RelativeBias(*_contiguous(table, row, buckets, hidden_keys))
    packed, query, positions, kept = _contiguous(packed, query, positions, kept)
    return _kernels().run_forward(packed, query, bias, positions, share, kept)


@_attention.register_fake
def _(packed, query, *_):
    result = packed.new_empty(packed[:, :, 0].shape if query is None else query.shape)
    batches, queries, heads, _ = result.shape
    return result, packed.new_empty(batches, heads, queries, dtype=torch.float32)


@torch.library.custom_op("amos_fairseq::attention_gradient", mutates_args=())
def _attention_gradient(
    gradient: Tensor, result: Tensor, logsumexp: Tensor, packed: Tensor, query: Optional[Tensor], table: Tensor,
    row: Tensor, buckets: Tensor, hidden_keys: Optional[Tensor], positions: Optional[Tensor], share: float,
    kept: Optional[Tensor], of_table: bool,
) -> Tuple[Tensor, Tensor, Tensor]:
    bias = RelativeBias(*_contiguous(table, row, buckets, hidden_keys))
    gradient, result, logsumexp, packed, query, positions, kept = _contiguous(
        gradient, result, logsumexp, packed, query, positions, kept
    )
    arguments = packed, query, bias, positions, share, kept
    return _kernels().run_backward(gradient, result, logsumexp, *arguments, of_table)


@_attention_gradient.register_fake
def _(gradient, result, logsumexp, packed, query, table, *rest):
    d_query = packed.new_empty(0 if query is None else query.shape)
    return packed.new_empty(packed.shape), d_query, table.new_empty(table.shape if rest[-1] else 0)


def _save(ctx, inputs, output):
    packed, query, table, row, buckets, hidden_keys, positions, share, kept = inputs
    ctx.save_for_backward(*output, packed, query, table, row, buckets, hidden_keys, positions, kept)
    ctx.share = share


def _backward(ctx, gradient, _):
    result, logsumexp, packed, query, table, row, buckets, hidden_keys, positions, kept = ctx.saved_tensors
    of_table = ctx.needs_input_grad[2]
    d_packed, d_query, d_table = _attention_gradient(
        gradient, result, logsumexp, packed, query, table, row, buckets, hidden_keys, positions, ctx.share,
        kept, of_table,
    )
    return d_packed, None if query is None else d_query, d_table if of_table else None, *[None] * 6


_attention.register_autograd(_backward, setup_context=_save)
