"""The CUDA kernels of :mod:`sglang_speckv.srt.reduction`; imported only where CUDA is used."""

from __future__ import annotations

import triton
import triton.language as tl

# Not -inf: a split that holds nothing but masked tokens must not make inf - inf.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def partial_sums(
    logits, partial, vocab, stride, per_split, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """One split of one row: m = max x, z = sum exp(x - m), s = sum (x - m) exp(x - m)."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    begin = split * per_split
    end = tl.minimum(begin + per_split, vocab)
    offsets = tl.arange(0, BLOCK)
    m = tl.full((), LOWEST, tl.float32)
    z = tl.zeros((), tl.float32)
    s = tl.zeros((), tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + offsets
        x = tl.load(logits + row * stride + at, mask=at < end, other=LOWEST).to(tl.float32)
        x = tl.maximum(x, LOWEST)
        new_m = tl.maximum(m, tl.max(x, 0))
        d = tl.maximum(x - new_m, -1e4)
        e = tl.where(at < end, tl.exp(d), 0.0)
        shift = tl.maximum(m - new_m, -1e4)
        scale = tl.exp(shift)
        s = scale * (s + shift * z) + tl.sum(d * e, 0)
        z = scale * z + tl.sum(e, 0)
        m = new_m
    place = partial + (row * SPLITS + split) * 3
    tl.store(place, m)
    tl.store(place + 1, z)
    tl.store(place + 2, s)


@triton.jit
def combine(partial, out, stride, SPLITS: tl.constexpr):
    """All splits of one row, each shifted to the row's own maximum."""
    row = tl.program_id(0).to(tl.int64)
    place = partial + (row * SPLITS + tl.arange(0, SPLITS)) * 3
    m = tl.load(place)
    z = tl.load(place + 1)
    s = tl.load(place + 2)
    shift = tl.maximum(m - tl.max(m, 0), -1e4)
    scale = tl.exp(shift)
    total = tl.sum(scale * z, 0)
    tl.store(out + row * stride, 1.0 / total)
    tl.store(out + row * stride + 1, tl.log(total) - tl.sum(scale * (s + shift * z), 0) / total)
