"""The CUDA kernel of :mod:`sglang_speckv.srt.graph_stop`; imported only where CUDA is used."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sglang_speckv.policy.checks import MAX_SHARE
from sglang_speckv.policy.logistic import LIMIT
from sglang_speckv.srt.graph_stop import LEAST

_LEAST = tl.constexpr(LEAST)
_LIMIT = tl.constexpr(LIMIT)
_MAX_SHARE = tl.constexpr(MAX_SHARE)
_NAN = tl.constexpr(float("nan"))
BLOCK = 128


@triton.jit
def _probability(odds):
    return 1.0 / (1.0 + tl.exp(-tl.minimum(tl.maximum(odds, -_LIMIT), _LIMIT)))


@triton.jit(do_not_specialize=["probs", "stride", "rows", "column"])
def decide(
    probs,
    stride,
    rule,
    survival,
    going,
    made,
    rows,
    column,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the rows of a captured batch are few. And one kernel for all of them, which is
    compiled before graphs are captured."""
    live = tl.load(rule)
    price = tl.load(rule + 2 + column)
    own_at = tl.load(rule + 1 + COLUMNS + column)
    own_by = tl.load(rule + 1 + 2 * COLUMNS + column)
    coming_at = tl.load(rule + 2 + 3 * COLUMNS + column)
    coming_by = tl.load(rule + 2 + 4 * COLUMNS + column)
    offsets = rule + 1 + 5 * COLUMNS
    gain = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        here = row < rows
        p = tl.load(probs + row * stride, mask=here, other=0.5)
        offset = tl.load(offsets + row, mask=here, other=0.0)
        before = tl.load(survival + row, mask=here & (column > 0), other=1.0)
        known = (p >= 0.0) & (p <= _MAX_SHARE)
        clamped = tl.minimum(tl.maximum(p, _LEAST), 1.0 - _LEAST)
        odds = tl.log(clamped / (1.0 - clamped))
        own = tl.where(known, before * _probability(own_at + own_by * odds + offset), _NAN)
        tl.store(survival + row, own, mask=here)
        worth = own * _probability(coming_at + coming_by * odds + offset)
        gain += tl.where(here & (row < live), worth, 0.0)
    stops = tl.sum(gain, 0) <= price  # never where it is unknown
    tl.store(going, stops == 0)
    tl.store(made, column + 1)


def launch(
    probs: Tensor,
    rule: Tensor,
    survival: Tensor,
    going: Tensor,
    made: Tensor,
    column: int,
    columns: int,
) -> None:
    state = probs, probs.stride(0), rule, survival, going, made
    decide[(1,)](*state, len(probs), column, COLUMNS=columns, BLOCK=BLOCK)
