"""Triton kernels of `ops/attention.py`, which says what they compute, for GPUs from sm_80 on.

Softmax is FlashAttention's (Dao et al., 2022), in powers of two. Nothing of size (T, T) leaves the chip; no atomics:

    forward       a tile of queries of one sequence and head, over its keys: result and log-sum-exp
    d_queries     the same tiles: delta = sum_d gradient . result, and the queries' gradient
    d_keys        a tile of keys, over its queries: the gradients of keys and values
    d_bias        a tile of pairs of one head, over sequences: dS is summed in registers, and then by bucket

`row` points to a head's bias at distance 0, `row + key - query` to that of a pair. Indices of queries and keys come as
columns and rows of a tile, or the other way round. `where` is the position of a query: its index, unless SELECTED.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from amos_fairseq.ops.noise import threshold_of


@triton.jit
def _rows_of(base, rows, stride, limit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D), zero from `limit` and from WIDTH on."""
    channels = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < limit
    if WIDTH < BLOCK_D:
        mask = mask & (channels[None, :] < WIDTH)
    return tl.load(base + rows[:, None] * stride + channels[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(base, rows, stride, limit, values, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    channels = tl.arange(0, BLOCK_D)
    mask = (rows[:, None] < limit) & (channels[None, :] < WIDTH)
    tl.store(base + rows[:, None] * stride + channels[None, :], values.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _places(packed, query, batch, head, heads, queries, keys, WIDTH: tl.constexpr, SELECTED: tl.constexpr):
    """Where queries, keys and values of a head begin, and the strides of their rows."""
    dim = heads * WIDTH
    if SELECTED:
        query += tl.cast(batch, tl.int64) * queries * dim + head * WIDTH
        key = packed + tl.cast(batch, tl.int64) * keys * 2 * dim + head * WIDTH
        return query, dim, key, key + dim, 2 * dim
    else:
        first = packed + tl.cast(batch, tl.int64) * keys * 3 * dim + head * WIDTH
        return first, 3 * dim, first + dim, first + 2 * dim, 3 * dim


@triton.jit
def _positions(positions, batch, m, queries, SELECTED: tl.constexpr):
    if SELECTED:
        return tl.load(positions + batch * queries + m, mask=m < queries, other=0).to(tl.int32)
    else:
        return m


@triton.jit
def _biased(
    scores, row, where, n, m_start, n_start, batch, keys, hidden_keys,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, SELECTED: tl.constexpr, BY_KEY: tl.constexpr,
):
    """With their bias; -inf at hidden keys."""
    if SELECTED:
        scores += tl.load(row + (n - where))
    else:
        # A tile holds few distances. They are read once, and spread from shared memory in the layout of the scores: a
        # load of all pairs would have a layout of its own and 64 bits of address for each.
        DISTANCES: tl.constexpr = 2 * BLOCK_M if BLOCK_M > BLOCK_N else 2 * BLOCK_N
        distances = tl.load(row + (n_start - m_start - BLOCK_M + 1) + tl.arange(0, DISTANCES))
        m, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        if BY_KEY:
            index = columns[:, None] + (BLOCK_M - 1 - m)[None, :]
        else:
            index = columns[None, :] + (BLOCK_M - 1 - m)[:, None]
        bias = tl.gather(distances, tl.reshape(index, (BLOCK_M * BLOCK_N,)), 0)
        scores += tl.reshape(bias, scores.shape)
    hidden = n >= keys
    if PADDED:
        hidden = tl.load(hidden_keys + batch * keys + n, mask=n < keys, other=1) != 0
    return tl.where(hidden, float("-inf"), scores)


@triton.jit
def _kept(
    kept, batch, head, heads, queries, keys, m, n_start,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BY_KEY: tl.constexpr,
):
    """Which weights of a tile stay, from a bit each."""
    words, bit = n_start // 32 + tl.arange(0, BLOCK_N // 32), tl.arange(0, 32)
    width = tl.cdiv(keys, 32)
    kept += tl.cast(batch * heads + head, tl.int64) * queries * width
    if BY_KEY:
        inside = (m[None, :] < queries) & (words[:, None] < width)
        word = tl.load(kept + m[None, :] * width + words[:, None], mask=inside, other=0)
        return tl.reshape((word[:, None, :] >> bit[None, :, None]) & 1, (BLOCK_N, BLOCK_M)) != 0
    else:
        inside = (m[:, None] < queries) & (words[None, :] < width)
        word = tl.load(kept + m[:, None] * width + words[None, :], mask=inside, other=0)
        return tl.reshape((word[:, :, None] >> bit[None, None, :]) & 1, (BLOCK_M, BLOCK_N)) != 0


@triton.jit
def draw(
    kept, seed, samples, positions, heads, queries, keys, threshold,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SELECTED: tl.constexpr, NAMED: tl.constexpr,
):
    """kept: (B, H, queries, ceil(keys / 32)) int32, a bit for each key: `dropout_mask` of ops/attention.py."""
    tile, tiles = tl.program_id(0), tl.cdiv(queries, BLOCK_M)
    head, batch = tile // tiles % heads, tile // tiles // heads
    m = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    row = _positions(positions, batch, m, queries, SELECTED) + (head << 16)
    sample = tl.load(samples + batch) if NAMED else batch.to(tl.int64)
    threshold = tl.cast(threshold, tl.uint32)
    width = tl.cdiv(keys, 32)
    kept += (batch * heads + head).to(tl.int64) * queries * width
    for n_start in range(0, keys, BLOCK_N):
        column = n_start // 4 + tl.arange(0, BLOCK_N // 4)  # 8 for each 32 keys: one call serves keys 8 apart
        a, b, c, d = tl.philox(
            tl.load(seed), column[None, :], row[:, None], sample.to(tl.int32), (sample >> 32).to(tl.int32), n_rounds=7
        )
        bits = (a >= threshold).to(tl.int32) | ((b >= threshold).to(tl.int32) << 8)
        bits |= ((c >= threshold).to(tl.int32) << 16) | ((d >= threshold).to(tl.int32) << 24)
        bits = tl.reshape(bits << (column % 8)[None, :], (BLOCK_M, BLOCK_N // 32, 8))
        words = n_start // 32 + tl.arange(0, BLOCK_N // 32)
        inside = (m[:, None] < queries) & (words[None, :] < width)
        tl.store(kept + m[:, None] * width + words[None, :], tl.sum(bits, 2), mask=inside)


@triton.jit
def forward(
    packed, query, row, hidden_keys, positions, kept, result, logsumexp,
    heads, queries, keys, row_width, pad, scale, rescale,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr, SELECTED: tl.constexpr, DROPOUT: tl.constexpr,
):
    tile, tiles = tl.program_id(0), tl.cdiv(queries, BLOCK_M)
    m_start, head, batch = tile % tiles * BLOCK_M, tile // tiles % heads, tile // tiles // heads
    q_base, q_stride, k_base, v_base, k_stride = _places(
        packed, query, batch, head, heads, queries, keys, WIDTH, SELECTED
    )
    row += head * row_width + pad + keys - 1
    m = m_start + tl.arange(0, BLOCK_M)
    where = _positions(positions, batch, m, queries, SELECTED)
    q = _rows_of(q_base, m, q_stride, queries, WIDTH, BLOCK_D)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    attended = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n_start in range(0, keys, BLOCK_N):
        n = n_start + tl.arange(0, BLOCK_N)
        k = _rows_of(k_base, n, k_stride, keys, WIDTH, BLOCK_D)
        v = _rows_of(v_base, n, k_stride, keys, WIDTH, BLOCK_D)
        scores = _biased(
            tl.dot(q, tl.trans(k), input_precision="ieee") * scale, row, where[:, None], n[None, :], m_start, n_start,
            batch, keys, hidden_keys, BLOCK_M, BLOCK_N, PADDED, SELECTED, False,
        )
        larger = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(larger == float("-inf"), 0.0, larger)  # no key yet: exp2(-inf), not exp2(nan)
        p = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            stays = _kept(kept, batch, head, heads, queries, keys, m, n_start, BLOCK_M, BLOCK_N, False)
            p = tl.where(stays, p, 0.0)
        attended = tl.dot(p.to(v.dtype), v, attended * shrink[:, None], input_precision="ieee")
        largest = larger
    # Where every key is hidden, the result is 0 as it stands, and the backward pass's probabilities are 0 by +inf.
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    attended *= (rescale / total)[:, None]
    tl.store(
        logsumexp + (batch * heads + head) * queries + m,
        tl.where(nothing, float("inf"), largest + tl.log2(total)), mask=m < queries,
    )
    result += tl.cast(batch, tl.int64) * queries * heads * WIDTH + head * WIDTH
    _store_rows(result, m, heads * WIDTH, queries, attended, WIDTH, BLOCK_D)


@triton.jit
def d_queries(
    packed, query, row, hidden_keys, positions, kept, result, logsumexp, gradient, delta, d_packed, d_query,
    heads, queries, keys, row_width, pad, scale, rescale, score_scale,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr, SELECTED: tl.constexpr, DROPOUT: tl.constexpr,
):
    tile, tiles = tl.program_id(0), tl.cdiv(queries, BLOCK_M)
    m_start, head, batch = tile % tiles * BLOCK_M, tile // tiles % heads, tile // tiles // heads
    q_base, q_stride, k_base, v_base, k_stride = _places(
        packed, query, batch, head, heads, queries, keys, WIDTH, SELECTED
    )
    row += head * row_width + pad + keys - 1
    m = m_start + tl.arange(0, BLOCK_M)
    where = _positions(positions, batch, m, queries, SELECTED)
    q = _rows_of(q_base, m, q_stride, queries, WIDTH, BLOCK_D)
    of_head = tl.cast(batch, tl.int64) * queries * heads * WIDTH + head * WIDTH
    g = _rows_of(gradient + of_head, m, heads * WIDTH, queries, WIDTH, BLOCK_D)
    attended = _rows_of(result + of_head, m, heads * WIDTH, queries, WIDTH, BLOCK_D)
    mean = tl.sum(g.to(tl.float32) * attended.to(tl.float32), 1)
    of_rows = (batch * heads + head) * queries + m
    tl.store(delta + of_rows, mean, mask=m < queries)
    lse = tl.load(logsumexp + of_rows, mask=m < queries, other=float("inf"))
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n_start in range(0, keys, BLOCK_N):
        n = n_start + tl.arange(0, BLOCK_N)
        k = _rows_of(k_base, n, k_stride, keys, WIDTH, BLOCK_D)
        v = _rows_of(v_base, n, k_stride, keys, WIDTH, BLOCK_D)
        scores = _biased(
            tl.dot(q, tl.trans(k), input_precision="ieee") * scale, row, where[:, None], n[None, :], m_start, n_start,
            batch, keys, hidden_keys, BLOCK_M, BLOCK_N, PADDED, SELECTED, False,
        )
        p = tl.exp2(scores - lse[:, None])
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        if DROPOUT:
            stays = _kept(kept, batch, head, heads, queries, keys, m, n_start, BLOCK_M, BLOCK_N, False)
            dp = tl.where(stays, dp * rescale, 0.0)
        ds = p * (dp - mean[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    dq_base, dq_stride, _, _, _ = _places(d_packed, d_query, batch, head, heads, queries, keys, WIDTH, SELECTED)
    _store_rows(dq_base, m, dq_stride, queries, dq * score_scale, WIDTH, BLOCK_D)


@triton.jit
def d_keys(
    packed, query, row, hidden_keys, positions, kept, logsumexp, gradient, delta, d_packed,
    heads, queries, keys, row_width, pad, scale, rescale, score_scale,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr, SELECTED: tl.constexpr, DROPOUT: tl.constexpr,
):
    tile, tiles = tl.program_id(0), tl.cdiv(keys, BLOCK_N)
    n_start, head, batch = tile % tiles * BLOCK_N, tile // tiles % heads, tile // tiles // heads
    q_base, q_stride, k_base, v_base, k_stride = _places(
        packed, query, batch, head, heads, queries, keys, WIDTH, SELECTED
    )
    row += head * row_width + pad + keys - 1
    gradient += tl.cast(batch, tl.int64) * queries * heads * WIDTH + head * WIDTH
    n = n_start + tl.arange(0, BLOCK_N)
    k = _rows_of(k_base, n, k_stride, keys, WIDTH, BLOCK_D)
    v = _rows_of(v_base, n, k_stride, keys, WIDTH, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for m_start in range(0, queries, BLOCK_M):
        m = m_start + tl.arange(0, BLOCK_M)
        where = _positions(positions, batch, m, queries, SELECTED)
        of_rows = (batch * heads + head) * queries + m
        lse = tl.load(logsumexp + of_rows, mask=m < queries, other=float("inf"))
        mean = tl.load(delta + of_rows, mask=m < queries, other=0.0)
        q = _rows_of(q_base, m, q_stride, queries, WIDTH, BLOCK_D)
        g = _rows_of(gradient, m, heads * WIDTH, queries, WIDTH, BLOCK_D)
        scores = _biased(
            tl.dot(k, tl.trans(q), input_precision="ieee") * scale, row, where[None, :], n[:, None], m_start, n_start,
            batch, keys, hidden_keys, BLOCK_M, BLOCK_N, PADDED, SELECTED, True,
        )
        p = tl.exp2(scores - lse[None, :])
        dp = tl.dot(v, tl.trans(g), input_precision="ieee")
        kept_p = p
        if DROPOUT:
            stays = _kept(kept, batch, head, heads, queries, keys, m, n_start, BLOCK_M, BLOCK_N, True)
            kept_p = tl.where(stays, p * rescale, 0.0)
            dp = tl.where(stays, dp * rescale, 0.0)
        dv = tl.dot(kept_p.to(g.dtype), g, dv, input_precision="ieee")
        ds = p * (dp - mean[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    _, _, dk_base, dv_base, dk_stride = _places(d_packed, d_packed, batch, head, heads, queries, keys, WIDTH, SELECTED)
    _store_rows(dk_base, n, dk_stride, keys, dk * score_scale, WIDTH, BLOCK_D)
    _store_rows(dv_base, n, dk_stride, keys, dv, WIDTH, BLOCK_D)


@triton.jit
def _by_bucket(ds, buckets, where, n, BLOCK_BUCKETS: tl.constexpr):
    """(BLOCK_BUCKETS,) sums of a tile; it holds few buckets, next to each other."""
    bucket = tl.load(buckets + (n[None, :] - where[:, None]))
    numbers = tl.arange(0, BLOCK_BUCKETS)
    sums = tl.zeros((BLOCK_BUCKETS,), tl.float32)
    for number in range(tl.min(bucket), tl.max(bucket) + 1):
        sums += tl.where(numbers == number, tl.sum(tl.where(bucket == number, ds, 0.0)), 0.0)
    return sums


@triton.jit
def d_bias(
    packed, query, row, hidden_keys, positions, kept, logsumexp, gradient, delta, buckets, d_table,
    batches, heads, queries, keys, row_width, pad, scale, rescale,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr, SELECTED: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_BUCKETS: tl.constexpr, PARTS: tl.constexpr,
):
    """d_table: (programs of a head, H, BLOCK_BUCKETS); PARTS programs share the sequences of a tile."""
    program = tl.program_id(0)
    part, tile, head = program % PARTS, program // PARTS // heads, program // PARTS % heads
    n_tiles = tl.cdiv(keys, BLOCK_N)
    m_start, n_start = tile // n_tiles * BLOCK_M, tile % n_tiles * BLOCK_N
    row += head * row_width + pad + keys - 1
    buckets += pad + keys - 1
    m, n = m_start + tl.arange(0, BLOCK_M), n_start + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_BUCKETS,), tl.float32)
    whole = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for batch in range(part, batches, PARTS):
        q_base, q_stride, k_base, v_base, k_stride = _places(
            packed, query, batch, head, heads, queries, keys, WIDTH, SELECTED
        )
        where = _positions(positions, batch, m, queries, SELECTED)
        of_rows = (batch * heads + head) * queries + m
        lse = tl.load(logsumexp + of_rows, mask=m < queries, other=float("inf"))
        mean = tl.load(delta + of_rows, mask=m < queries, other=0.0)
        q = _rows_of(q_base, m, q_stride, queries, WIDTH, BLOCK_D)
        k = _rows_of(k_base, n, k_stride, keys, WIDTH, BLOCK_D)
        scores = _biased(
            tl.dot(q, tl.trans(k), input_precision="ieee") * scale, row, where[:, None], n[None, :], m_start, n_start,
            batch, keys, hidden_keys, BLOCK_M, BLOCK_N, PADDED, SELECTED, False,
        )
        p = tl.exp2(scores - lse[:, None])
        of_head = tl.cast(batch, tl.int64) * queries * heads * WIDTH + head * WIDTH
        g = _rows_of(gradient + of_head, m, heads * WIDTH, queries, WIDTH, BLOCK_D)
        v = _rows_of(v_base, n, k_stride, keys, WIDTH, BLOCK_D)
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        if DROPOUT:
            stays = _kept(kept, batch, head, heads, queries, keys, m, n_start, BLOCK_M, BLOCK_N, False)
            dp = tl.where(stays, dp * rescale, 0.0)
        ds = p * (dp - mean[:, None])
        if SELECTED:
            sums += _by_bucket(ds, buckets, where, n, BLOCK_BUCKETS)
        else:
            whole += ds
    if not SELECTED:
        sums = _by_bucket(whole, buckets, m, n, BLOCK_BUCKETS)
    d_table += (tl.cast(tile * PARTS + part, tl.int64) * heads + head) * BLOCK_BUCKETS
    tl.store(d_table + tl.arange(0, BLOCK_BUCKETS), sums)


class Tile(NamedTuple):
    """Queries and keys of a tile; warps of a program, stages of its loop."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


def tile_of(kernel, block_d: int, dtype: torch.dtype, selected: bool, arch: int) -> Tile:
    """Such that no register is spilled, and shared memory stays below the 99 KiB that every GPU from sm_80 on has.

    `examples/benchmarks/attention_resources.py` shows what each takes.
    """
    wide, hopper = block_d > 64, arch >= 90
    if dtype == torch.float32:
        tiles = dict(forward=(32, 32, 8, 1), d_queries=(32, 32, 4, 2), d_keys=(32, 32, 8, 2), d_bias=(32, 32, 8, 2))
        if wide:
            tiles.update(forward=(16, 32, 8 if hopper else 4, 1), d_keys=(16, 32, 4, 1))
            tiles.update(d_bias=(32, 32, 8 if hopper else 4, 2))
    elif wide:
        tiles = dict(forward=(64, 64, 4, 2), d_queries=(64, 32, 4, 2), d_keys=(32, 64, 8, 2), d_bias=(32, 32, 4, 2))
    elif selected:  # the bias is loaded for each pair
        tiles = dict(forward=(128, 64, 8, 2), d_queries=(128, 32, 8, 2), d_keys=(32, 128, 8, 1), d_bias=(64, 32, 4, 2))
        if hopper:
            tiles.update(d_queries=(128, 64, 8, 2), d_keys=(64, 64, 8, 2), d_bias=(128, 64, 8, 2))
    else:
        tiles = dict(forward=(128, 64, 8, 3), d_queries=(128, 32, 8, 2), d_keys=(32, 128, 8, 1), d_bias=(64, 32, 8, 2))
        if hopper:
            tiles.update(d_queries=(128, 64, 8, 2), d_keys=(64, 128, 8, 2), d_bias=(128, 64, 8, 2))
    return Tile(*tiles[kernel.fn.__name__])


BIAS_PROGRAMS = 512  # of `d_bias`, at least, where there are enough sequences: some for each of a GPU's processors


DRAWN = Tile(16, 256, 4, 1)


def run_draw(seed, samples, positions, batches: int, heads: int, queries: int, keys: int, share: float):
    """The bits of a dropout mask, (B, H, L, ceil(T / 32)) int32."""
    kept = torch.empty(batches, heads, queries, triton.cdiv(keys, 32), dtype=torch.int32, device=seed.device)
    with _on(seed.device):
        draw[(batches * heads * triton.cdiv(queries, DRAWN.BLOCK_M),)](
            kept, seed, samples, positions, heads, queries, keys, threshold_of(share), **DRAWN._asdict(),
            SELECTED=positions is not None, NAMED=samples is not None,
        )
    return kept


def run_forward(packed, query, bias, positions, share: float, kept):
    """result (B, L, H, D) and log-sum-exps (B, H, L) in fp32, to the base 2; arguments of `ops.relative_attention`."""
    shared = _Call(packed, query, bias, positions, share, kept)
    batches, queries, heads, width = shared.of_queries
    result = packed.new_empty(shared.of_queries)
    logsumexp = packed.new_empty(batches, heads, queries, dtype=torch.float32)
    shared.launch(forward, batches * heads, "queries", result=result, logsumexp=logsumexp)
    return result, logsumexp


def run_backward(gradient, result, logsumexp, packed, query, bias, positions, share: float, kept, of_table: bool):
    """Gradients of `packed`, `query` and `bias.table`, those that are not asked for empty."""
    shared = _Call(packed, query, bias, positions, share, kept)
    batches, queries, heads, width = shared.of_queries
    delta, d_packed = torch.empty_like(logsumexp), torch.empty_like(packed)
    d_query = packed.new_empty(0) if query is None else torch.empty_like(query)
    given = dict(logsumexp=logsumexp, gradient=gradient, delta=delta)
    score_scale = width**-0.5
    shared.launch(
        d_queries, batches * heads, "queries", **given, result=result, d_packed=d_packed, d_query=d_query,
        score_scale=score_scale,
    )
    shared.launch(d_keys, batches * heads, "keys", **given, d_packed=d_packed, score_scale=score_scale)
    if not of_table:
        return d_packed, d_query, packed.new_empty(0, dtype=torch.float32)
    tiles = shared.tiles(d_bias, "queries") * shared.tiles(d_bias, "keys")
    parts = min(max(1, batches), triton.cdiv(BIAS_PROGRAMS, max(1, tiles * heads)))
    block_buckets = triton.next_power_of_2(len(bias.table))
    d_table = packed.new_empty(tiles * parts, heads, block_buckets, dtype=torch.float32)
    shared.launch(
        d_bias, heads * parts, "queries", "keys", **given, buckets=bias.buckets, d_table=d_table, batches=batches,
        BLOCK_BUCKETS=block_buckets, PARTS=parts,
    )
    return d_packed, d_query, d_table.sum(0)[:, : len(bias.table)].t().contiguous()


class _Call:
    """What all kernels of one call are given."""

    def __init__(self, packed, query, bias, positions, share, kept):
        batches, keys, _, heads, width = packed.shape
        queries = keys if query is None else query.size(1)
        self.of_queries = batches, queries, heads, width
        self.block_d, self.dtype, self.device = triton.next_power_of_2(width), packed.dtype, packed.device
        major, minor = torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else (8, 0)
        self.arch = 10 * major + minor
        self.arguments = dict(
            packed=packed, query=query, row=bias.row, positions=positions, kept=kept,
            hidden_keys=None if bias.hidden_keys is None else bias.hidden_keys.view(torch.uint8),
            heads=heads, queries=queries, keys=keys, row_width=bias.row.size(1), pad=(bias.row.size(1) + 1) // 2 - keys,
            scale=width**-0.5 / math.log(2), rescale=1 / (1 - share),
            WIDTH=width, BLOCK_D=self.block_d, PADDED=bias.hidden_keys is not None, SELECTED=query is not None,
            DROPOUT=kept is not None,
        )

    def tiles(self, kernel, side: str) -> int:
        tile = self.tile(kernel)
        return triton.cdiv(self.arguments[side], tile.BLOCK_M if side == "queries" else tile.BLOCK_N)

    def tile(self, kernel) -> Tile:
        return tile_of(kernel, self.block_d, self.dtype, self.arguments["SELECTED"], self.arch)

    def launch(self, kernel, programs: int, *sides: str, **arguments) -> None:
        """`programs` for each tile of the sides."""
        arguments = {**self.arguments, **arguments}
        given = {name: arguments[name] for name in kernel.arg_names if name in arguments}
        grid = (programs * math.prod(self.tiles(kernel, side) for side in sides),)
        with _on(self.device):
            kernel[grid](**given, **self.tile(kernel)._asdict())


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
