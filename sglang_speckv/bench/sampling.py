"""Sampled answers: does an arm draw from the distribution that the target alone draws from?

One prompt is answered many times with a few tokens. A first token comes from prefill; from the
second on they come out of verification, so those positions are compared (chi-square, Bonferroni).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sglang_speckv.bench.load import Answer, drive
from sglang_speckv.bench.prompts import Prompt
from sglang_speckv.bench.traffic import Block, Condition, Segment

REPEATS = 240
TOKENS = 4
LEAST_P = 1e-3
_LEAST_COUNT = 10

Samples = list[tuple[int, ...]]


async def draw(answer: Answer, prompt: Prompt, concurrency: int) -> Samples:
    """``REPEATS`` answers to one prompt."""
    segment = Segment(concurrency, (prompt,) * REPEATS)
    load = await drive(Block(0, Condition("repeated", concurrency), (segment,)), answer)
    return [completion.output_ids for completion in load.completions]


def p_value(ours: Samples, theirs: Samples) -> float:
    """Of both being one distribution at every position after the first."""
    length = min(map(len, (*ours, *theirs)), default=0)
    found = [
        _p_at([answer[i] for answer in ours], [answer[i] for answer in theirs])
        for i in range(1, length)
    ]
    return min(1.0, len(found) * min(found, default=1.0))


def _p_at(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Chi-square over the tokens that are common enough; all others count as one."""
    from scipy.stats import chi2_contingency

    left, right = Counter(ours), Counter(theirs)
    both = left + right
    common = [token for token, n in both.items() if n >= 2 * _LEAST_COUNT]
    table = np.array([[side[token] for token in common] for side in (left, right)])
    rest = np.array([[len(ours)], [len(theirs)]]) - table.sum(axis=1, keepdims=True)
    if rest.sum():
        table = np.hstack([table, rest])
    return float(chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0
