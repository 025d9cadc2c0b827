"""Does an arm draw its sampled answers from the distribution that the target alone draws from?

One prompt is answered many times with a few tokens. A first token comes from prefill; from the
second on they come out of verification, so those positions are compared (chi-square, Bonferroni).
With so few answers the test finds gross errors only; :func:`detectable` says how gross.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, chi2_contingency, ncx2

from sglang_speckv.ab.load import Answer, drive
from sglang_speckv.ab.request import Prompt
from sglang_speckv.ab.traffic import Block, Condition, Segment

REPEATS = 240
TOKENS = 4
LEAST_P = 1e-3
POWER = 0.9
_LEAST_COUNT = 10

Samples = list[tuple[int, ...]]


async def draw(answer: Answer, prompt: Prompt, concurrency: int) -> Samples:
    """``REPEATS`` answers to one prompt."""
    segment = Segment(concurrency, (prompt,) * REPEATS)
    load = await drive(Block(0, Condition("repeated", concurrency), (segment,)), answer)
    return [completion.output_ids for completion in load.completions]


def p_value(ours: Samples, theirs: Samples) -> float | None:
    """Of both being one distribution at every position after the first. None where there is no
    such position, as in answers from elsewhere, which come without token ids."""
    tables = [_table(*answers) for answers in _positions(ours, theirs)]
    found = [float(chi2_contingency(t).pvalue) if t.shape[1] > 1 else 1.0 for t in tables]
    return min(1.0, len(found) * min(found)) if found else None


def detectable(theirs: Samples) -> float:
    """The share of probability that an arm would have to move away from the likeliest token, at
    the position where it shows most, to be found with a probability of :data:`POWER`; 1 where
    nothing would be found."""
    shares = []
    for answers, _ in _positions(theirs, theirs):
        table = _table(answers, answers)
        if table.shape[1] > 1:
            likeliest = table[0].max() / table[0].sum()
            needed = _noncentrality(table.shape[1] - 1, LEAST_P / (len(theirs[0]) - 1))
            shares.append(math.sqrt(2 * needed * likeliest * (1 - likeliest) / len(answers)))
    return min(1.0, *shares) if shares else 1.0


def _noncentrality(freedom: int, level: float) -> float:
    """What a chi-square test at ``level`` needs to reject with a probability of :data:`POWER`."""
    critical = chi2.isf(level, freedom)
    return float(brentq(lambda nc: ncx2.sf(critical, freedom, nc) - POWER, 1e-6, 1e4))


def _positions(ours: Samples, theirs: Samples) -> Iterator[tuple[list[int], list[int]]]:
    for i in range(1, min(map(len, (*ours, *theirs)), default=0)):
        yield [answer[i] for answer in ours], [answer[i] for answer in theirs]


def _table(ours: Sequence[int], theirs: Sequence[int]) -> np.ndarray:
    """[2, tokens] counts of the tokens that are common enough; all others count as one."""
    left, right = Counter(ours), Counter(theirs)
    both = left + right
    common = [token for token, n in both.items() if n >= 2 * _LEAST_COUNT]
    table = np.array([[side[token] for token in common] for side in (left, right)])
    rest = np.array([[len(ours)], [len(theirs)]]) - table.sum(axis=1, keepdims=True)
    return np.hstack([table, rest]) if rest.sum() else table
