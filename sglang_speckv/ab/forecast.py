"""What a run of the given length can tell, said before it starts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from scipy.stats import t as student

from sglang_speckv.ab.intervals import LEVEL, MIN_BLOCKS
from sglang_speckv.ab.journal import BlockResult
from sglang_speckv.ab.traffic import Block

WARM_UP_TOKENS = 16
USUAL_SPREAD = 0.05
"""Of two arms' ratio between blocks, on a machine that is shared."""


Shape = tuple[tuple[int, int], ...]


def shape(block: Block) -> Shape:
    """(requests at a time, requests) of each segment: blocks alike in it take as long."""
    return tuple((segment.concurrency, len(segment.prompts)) for segment in block.segments)


@dataclass
class Forecast:
    """Seconds of one real block of all arms, told from short ones. ``conditions`` counts those that
    run blocks of a shape."""

    max_new_tokens: int
    conditions: Counter[Shape] = field(default_factory=Counter)
    seconds: dict[Shape, float] = field(default_factory=lambda: defaultdict(float))

    def is_new(self, block: Block) -> bool:
        """Counts a condition with such blocks, and says whether it is the first one."""
        self.conditions[shape(block)] += 1
        return self.conditions[shape(block)] == 1

    def add(self, result: BlockResult) -> None:
        prefill, start = 0.0, 0
        for segment in result.block.segments:
            ours = result.completions[start : start + len(segment.prompts)]
            start += len(ours)
            prefill += max((c.ttft_s or 0.0 for c in ours), default=0.0)
        prefill = min(prefill, result.seconds)
        decode = (result.seconds - prefill) * self.max_new_tokens / WARM_UP_TOKENS
        self.seconds[shape(result.block)] += prefill + decode

    def text(self, left_s: float) -> str:
        """How many blocks each condition will get in ``left_s`` seconds, and what that can show."""
        whole = sum(self.seconds[shape] * n for shape, n in self.conditions.items())
        if not whole or math.isinf(left_s):
            return f"one block under each load takes about {whole:.0f} s"
        left_s = max(left_s, 0.0)
        blocks = int(left_s / whole)
        said = f"in the {left_s / 60:.0f} minutes left, about {blocks} blocks under each load"
        if blocks >= MIN_BLOCKS:
            quantile = float(student.ppf(0.5 + LEVEL / 2, blocks - 1))
            width = quantile * USUAL_SPREAD / math.sqrt(blocks)
            return (
                f"{said}: where blocks differ by {USUAL_SPREAD:.0%}, as is usual, ratios are known "
                f"to about {width:.1%}"
            )
        needed = math.ceil(MIN_BLOCKS * whole / 60)
        return (
            f"{said}: too few for an interval; ask for {needed} minutes or more, fewer arms or "
            "loads, or a smaller --max-new-tokens"
        )
