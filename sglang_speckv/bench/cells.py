"""Cells: one arm of one draft under one condition, with everything that is reported of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sglang_speckv.bench import stats
from sglang_speckv.bench.arms import Arm
from sglang_speckv.bench.counters import Counters
from sglang_speckv.bench.lossless import Verdict
from sglang_speckv.bench.results import BlockResult, Results, tok_per_s
from sglang_speckv.bench.stats import Ratio, Resampled, Sample, Units
from sglang_speckv.bench.traffic import Condition

Paired = Mapping[Arm, Sequence[BlockResult]]
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Cell:
    """None where a figure does not exist. ``ratio`` is to the best static arm, ``none`` included.

    ``step_time`` is the share of decoding time per step count, of the newest rounds of each block.
    """

    draft: str
    arm: str
    condition: Condition
    tok_per_s: float
    accept_length: float | None
    accept_rate: float | None
    active: bool | None
    lossless: bool | None
    steps: Mapping[str, float] | None
    step_time: Mapping[str, float] | None
    ratio: Ratio | None
    to_baseline: Ratio | None
    verdict: Verdict | None
    blocks: Sequence[BlockResult]

    @property
    def concurrency(self) -> int | None:
        return self.condition.concurrency

    def to_json(self) -> dict[str, Any]:
        """What the last line of ``speckv demo`` holds of it."""
        return {
            "draft": self.draft,
            "arm": self.arm,
            "concurrency": self.concurrency,
            "tok_per_s": round(self.tok_per_s, 2),
            "accept_length": _rounded(self.accept_length),
            "accept_rate": _rounded(self.accept_rate),
            "active": self.active,
            "lossless": self.lossless,
            "steps": None if self.steps is None else rounded_shares(self.steps),
        }

    def to_ab_json(self) -> dict[str, Any]:
        """What the last line of ``speckv ab`` holds of it."""
        ratio = self.ratio
        return {
            **self.to_json(),
            "workload": self.condition.traffic,
            "rate": self.condition.rate,
            "blocks": len(self.blocks),
            "vs_best_static": ratio and _rounded(ratio.value),
            "interval": ratio and ratio.interval,
        }

    def latencies(self) -> dict[str, dict[str, float] | None]:
        """Percentiles in seconds of whole requests, first tokens, and tokens after the first."""
        done = [completion for result in self.blocks for completion in result.completions]
        return {
            "latency_s": percentiles([completion.latency_s for completion in done]),
            "first_token_s": percentiles([c.first_s for c in done if c.first_s is not None]),
            "per_token_s": percentiles([s for c in done if (s := c.per_token_s) is not None]),
        }


def cells_for(
    draft: str,
    paired: Paired,
    verdicts: Mapping[Arm, Verdict],
    baseline: str = "none",
    alone: Paired | None = None,
) -> list[Cell]:
    """One draft's cells under one condition, from ``paired`` blocks of its arms and ``none``;
    arms that ran too few of them (``alone``) have no ratios."""
    arms = list(paired)
    cells = [_cell(draft, arm, paired[arm], verdicts.get(arm)) for arm in arms]
    if arms:
        drawn = Resampled([sample_of(paired)])
        static = [i for i, arm in enumerate(arms) if arm.is_static]
        base = next((i for i, arm in enumerate(arms) if arm.name == baseline), None)
        for i, cell in enumerate(cells):
            n = len(cell.blocks)
            best = drawn.ratio(stats.over_best(i, static), True, n) if static else None
            cells[i] = replace(
                cell,
                ratio=best and capped(best, i in static),
                to_baseline=None if base is None else drawn.ratio(stats.over(i, base), False, n),
            )
    return cells + [_cell(draft, a, blocks, verdicts.get(a)) for a, blocks in (alone or {}).items()]


def pair_up(
    results: Results, arms: Sequence[Arm], condition: Condition, failed: Collection[str] = ()
) -> tuple[Paired, Paired]:
    """Blocks by arm that can be compared, and those of arms whose server ``failed``. The first arm
    has all of the former; what others lack of them, they were spared."""
    ran = {arm: found for arm in arms if (found := results.of(arm, condition))}
    good = [arm for arm in ran if arm.server not in failed]
    always = [arm for arm in good if not arm.may_be_spared] or good
    shared = {r.block.index for r in next(iter(results.common(always, condition).values()), ())}
    kept = {a: [r for r in ran[a] if r.block.index in shared] for a in (*always[:1], *good)}
    paired = {arm: blocks for arm, blocks in kept.items() if blocks}
    return paired, {arm: blocks for arm, blocks in ran.items() if arm not in paired}


def sample_of(paired: Paired) -> Sample:
    """Tokens and seconds of the arms by block and by prompt; 0 where an arm was spared."""
    first = next(iter(paired.values()))
    place = {result.block.index: i for i, result in enumerate(first)}
    prompts = sorted({prompt.id for result in first for prompt in result.block.prompts})
    column = {prompt: i for i, prompt in enumerate(prompts)}
    by_block = np.zeros((2, len(paired), len(place)))
    by_prompt = np.zeros((2, len(paired), len(prompts)))
    for row, results in enumerate(paired.values()):
        for result in results:
            by_block[:, row, place[result.block.index]] = result.tokens, result.cost_s
            _add_by_prompt(by_prompt[:, row], result, column)
    names = tuple(f"{first[0].block.condition}/{index}" for index in place)
    return Sample(
        Units(by_block[0], by_block[1], names), Units(by_prompt[0], by_prompt[1], tuple(prompts))
    )


def capped(ratio: Ratio, member: bool) -> Ratio:
    """One of several can at most be the best of them."""
    if not member or ratio.high is None or ratio.low is None:
        return ratio
    return Ratio(min(ratio.value, 1.0), min(ratio.low, 1.0), min(ratio.high, 1.0))


def total_counters(results: Sequence[BlockResult]) -> Counters | None:
    found = [result.counters for result in results if result.counters is not None]
    return sum(found[1:], found[0]) if found else None


def engine_accept_length(results: Sequence[BlockResult]) -> float | None:
    """From SGLang's per-request counts: tokens per verify round; None without drafting."""
    completions = [completion for result in results for completion in result.completions]
    verifies = sum(completion.verify_ct for completion in completions)
    correct = sum(completion.num_correct_drafts for completion in completions)
    return 1 + correct / verifies if verifies else None


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": round(float(value), 5) for p, value in zip(PERCENTILES, found, strict=True)}


def rounded_shares(shares: Mapping[str, float], digits: int = 4) -> dict[str, float]:
    """Rounded so that they still sum to 1: the largest takes up the difference."""
    rounded = {tier: round(share, digits) for tier, share in shares.items()}
    largest = max(rounded, key=lambda tier: rounded[tier])
    rounded[largest] = round(rounded[largest] + 1 - sum(rounded.values()), digits)
    return rounded


def _cell(draft: str, arm: Arm, results: Sequence[BlockResult], verdict: Verdict | None) -> Cell:
    counters = total_counters(results)
    return Cell(
        draft=draft,
        arm=arm.name,
        condition=results[0].block.condition,
        tok_per_s=tok_per_s(results),
        accept_length=counters.accept_length if counters else engine_accept_length(results),
        accept_rate=counters.accept_rate if counters else None,
        active=True if counters else None,
        lossless=verdict.lossless if verdict else None,
        steps=counters.shares() if counters else None,
        step_time=_time_shares(results),
        ratio=None,
        to_baseline=None,
        verdict=verdict,
        blocks=results,
    )


def _time_shares(results: Sequence[BlockResult]) -> dict[str, float] | None:
    seconds: dict[str, float] = {}
    for result in results:
        for tier, spent in (result.counters.step_seconds() if result.counters else {}).items():
            seconds[tier] = seconds.get(tier, 0.0) + spent
    total = sum(seconds.values())
    return {tier: seconds[tier] / total for tier in sorted(seconds, key=int)} if total else None


def _add_by_prompt(row: np.ndarray, result: BlockResult, column: Mapping[str, int]) -> None:
    """``row`` [2, prompts] gets the block's tokens, and its seconds by the requests' own time."""
    own = result.counted.seconds
    if not own.any():
        own = np.ones(len(own))
    shares = result.cost_s * own / own.sum()
    places = [column[prompt.id] for prompt in result.block.prompts]
    np.add.at(row.T, places, np.stack([result.counted.tokens, shares], axis=1))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
