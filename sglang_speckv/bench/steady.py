"""What of a block counts towards throughput: the time in which all slots of a closed loop are busy.

A block's last stretch, in which a slot after the other runs empty, measures its slowest request
and not what a server under that load puts out: at sixteen requests it put shallow depths 5 to 10 %
ahead of deeper ones that earn as many tokens per second round for round. Each segment therefore
counts from its first request to the first moment at which a slot stays empty. That moment is a
stopping time, so tokens over seconds, both summed over blocks, is unbiased (Wald's identity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_speckv.bench.load import Completion
from sglang_speckv.bench.traffic import Block


@dataclass(frozen=True)
class Counted:
    """``cost_s`` is what throughput is counted over; ``tokens`` [requests] and ``seconds``
    [requests] are each request's part of it."""

    cost_s: float
    tokens: np.ndarray
    seconds: np.ndarray


def counted(block: Block, completions: Sequence[Completion], wall_s: float) -> Counted:
    """Of an open loop, whose wall time is the arrivals', all tokens over the requests' own time; of
    completions that do not say when their tokens arrived, all tokens over wall time."""
    latencies = np.array([completion.latency_s for completion in completions])
    whole = np.array([completion.tokens for completion in completions], dtype=float)
    if block.condition.rate is not None:
        return Counted(float(latencies.sum()), whole, latencies)
    if not all(completion.arrived for completion in completions):
        return Counted(wall_s, whole, latencies)
    cost_s, start, parts = 0.0, 0, []
    for segment in block.segments:
        part = completions[start : start + len(segment.prompts)]
        start += len(segment.prompts)
        begin, end = _busy(part, segment.concurrency)
        cost_s += end - begin
        parts += [_until(completion, end) for completion in part]
    tokens, seconds = np.array(parts, dtype=float).T
    return Counted(cost_s, tokens, seconds)


def _busy(part: Sequence[Completion], slots: int) -> tuple[float, float]:
    """From the first request to the first slot that stays empty."""
    ends = sorted(completion.sent_s + completion.latency_s for completion in part)
    return min(completion.sent_s for completion in part), ends[-min(slots, len(ends))]


def _until(completion: Completion, end: float) -> tuple[float, float]:
    """Tokens by ``end``, and the request's time until then. Tokens come in rounds: within one they
    are taken to come evenly, as a round of many requests does not arrive at one instant and would
    else count for the first of them only."""
    own = min(completion.latency_s, max(0.0, end - completion.sent_s))
    times, tokens = zip(*completion.arrived, strict=True)
    return float(np.interp(own, times, tokens, left=0.0)), own
