"""What of a block counts towards throughput.

The window is SGLang's own (``sglang.benchmark.stream_metrics``): from the moment at which every
request has its first token to the moment at which the first one is done. All slots decode in it,
and no prefill is in it, which TTFT tells apart. Where a slot answers several requests one after
another, the window ends when a slot first stays empty, and the later prefills are in it.
Tokens at its ends are interpolated between the events around them, as SGLang does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_speckv.ab.request import Completion
from sglang_speckv.ab.traffic import Block


@dataclass(frozen=True)
class Part:
    """What counts of one segment. ``load`` is its requests at a time, or an open loop's arrivals
    per second; ``seconds`` is what throughput is counted over; ``tokens`` [requests] and ``own_s``
    [requests] are each request's tokens and time within it. ``whole`` is False where the first
    request was done before the last had begun: there is no window then, and the segment counts
    from its first request on."""

    load: float
    seconds: float
    tokens: np.ndarray
    own_s: np.ndarray
    whole: bool = True

    @property
    def shares(self) -> np.ndarray:
        """``seconds`` [requests], divided by the requests' own time."""
        own = self.own_s if self.own_s.any() else np.ones_like(self.own_s)
        return self.seconds * own / own.sum()


def counted(block: Block, completions: Sequence[Completion]) -> list[Part]:
    """The parts of ``block``, one for each segment. Of an open loop, whose wall time is that of the
    arrivals, all tokens count over the requests' own time."""
    rate = block.condition.rate
    if rate is not None:
        tokens = np.array([completion.tokens for completion in completions], dtype=float)
        own = np.array([completion.e2e_s for completion in completions])
        return [Part(rate, float(own.sum()), tokens, own)]
    parts, start = [], 0
    for segment in block.segments:
        ours = completions[start : start + len(segment.prompts)]
        start += len(segment.prompts)
        parts.append(_part(ours, segment.concurrency))
    return parts


def _part(completions: Sequence[Completion], slots: int) -> Part:
    begins = [c.sent_s + (c.ttft_s or 0.0) for c in completions[:slots]]
    ends = sorted(c.sent_s + c.e2e_s for c in completions)
    begin, end = max(begins), ends[-min(slots, len(ends))]
    whole = begin < end
    if not whole:
        begin = min(completion.sent_s for completion in completions)
    within = [_within(completion, begin, end) for completion in completions]
    tokens, own = np.array(within, dtype=float).T
    return Part(float(slots), end - begin, tokens, own, whole)


def _within(completion: Completion, begin: float, end: float) -> tuple[float, float]:
    """Tokens and seconds of one request between two moments of its block."""
    # begin is when some first token came, which rounding must not put before that token
    first = min(completion.e2e_s, max(0.0, begin - completion.sent_s + 1e-9))
    last = min(completion.e2e_s, max(0.0, end - completion.sent_s))
    times, tokens = zip(*completion.arrived, strict=True)
    before, after = np.interp([first, last], times, tokens, left=0.0)
    return float(after - before), last - first
