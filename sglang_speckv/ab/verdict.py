"""What a run's blocks say: every arm under every load, over all loads, and the noise.

A fixed setting is one that a user could have launched instead: no drafting, SGLang's default, a
number of steps. ``vs_best_fixed`` is the raw ratio to the one that came out fastest, which flatters
that one; ``lower_bound`` is the least of the lower bounds of the ratios to every fixed setting, so
an arm is, at 95 %, at least that much of each of them, whichever is the best.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang_speckv.ab.arms import NO_DRAFT, Arm
from sglang_speckv.ab.comparison import Comparison
from sglang_speckv.ab.counters import Counters, shares_of
from sglang_speckv.ab.intervals import Ratio, Sample, ratio
from sglang_speckv.ab.journal import BlockResult, Results
from sglang_speckv.ab.load import Completion
from sglang_speckv.ab.lossless import Verdict
from sglang_speckv.ab.options import Goodput
from sglang_speckv.ab.runner import Outcome
from sglang_speckv.ab.traffic import Condition
from sglang_speckv.ab.window import Part

NOT_INFERIOR = 0.95
"""Of a load's best fixed setting: what an arm may cost at most to pass for as good."""
PERCENTILES = (50, 90, 99)
RESTATED = "speckv:ema"
"""SGLang's own rule as this project restates it, for drafts that SGLang has no rule for."""


@dataclass(frozen=True)
class Standing:
    """How an arm compares: ``over`` has its ratio to every fixed setting, to ``ema`` and to the
    baseline, by name; ``best_fixed`` is the fixed setting with the most tok/s."""

    over: Mapping[str, Ratio]
    fixed: Collection[str]
    best_fixed: str | None

    @property
    def vs_best_fixed(self) -> Ratio | None:
        return self.over.get(self.best_fixed or "")

    @property
    def lower_bound(self) -> float | None:
        """At least this much of every fixed setting, at 95 %."""
        lows = [self.over[name].low for name in self.fixed if name in self.over]
        known = [low for low in lows if low is not None]
        return min(known) if known and len(known) == len(lows) else None


@dataclass(frozen=True)
class Cell:
    """One arm of one draft under one load. None where a figure does not exist.

    ``steps`` are shares of the decode rounds by num_steps, ``step_time`` shares of their time.
    """

    draft: str
    arm: str
    condition: Condition
    tok_per_s: float
    blocks: Sequence[BlockResult]
    parts: Sequence[Sequence[Part]]
    completions: Sequence[Completion]
    standing: Standing
    verdict: Verdict | None
    goodput: float | None = None

    @property
    def counters(self) -> Counters | None:
        """Over all blocks; of moving traffic, under all of its loads."""
        found = [block.counters for block in self.blocks if block.counters is not None]
        return sum(found[1:], found[0]) if found else None

    @property
    def steps(self) -> Mapping[str, float] | None:
        return self.counters.shares(self._batch_sizes) if self.counters else None

    @property
    def step_time(self) -> Mapping[str, float] | None:
        seconds: dict[str, float] = {}
        for block in self.blocks:
            found = block.counters.step_seconds(self._batch_sizes) if block.counters else {}
            seconds |= {tier: seconds.get(tier, 0.0) + s for tier, s in found.items()}
        return shares_of(seconds) or None

    @property
    def _batch_sizes(self) -> tuple[int, int] | None:
        """Of moving traffic, (above, up to): the batches that belong to this load."""
        levels = sorted({s.concurrency for block in self.blocks for s in block.block.segments})
        if len(levels) < 2 or self.condition.concurrency is None:
            return None
        place = levels.index(self.condition.concurrency)
        return (levels[place - 1] if place else 0, levels[place])

    @property
    def accept_length(self) -> float | None:
        """Tokens per request and verify round, bonus included, by SGLang's count per request."""
        verifies = sum(completion.verify_ct for completion in self.completions)
        correct = sum(completion.num_correct_drafts for completion in self.completions)
        return 1 + correct / verifies if verifies else None

    @property
    def accept_rate(self) -> float | None:
        return self.counters.accept_rate if self.counters else None

    @property
    def ttft_s(self) -> dict[str, float] | None:
        return percentiles([c.ttft_s for c in self.completions if c.ttft_s is not None])

    @property
    def tpot_s(self) -> dict[str, float] | None:
        return percentiles([s for c in self.completions if (s := c.tpot_s) is not None])

    @property
    def e2e_s(self) -> dict[str, float] | None:
        return percentiles([completion.e2e_s for completion in self.completions])


@dataclass(frozen=True)
class Sweep:
    """All arms of a draft under one kind of traffic: geometric means over its loads. ``own_best``
    is an arm over the best fixed setting of each load, which nobody knows beforehand;
    ``not_inferior`` counts the loads in which its lower bound reaches :data:`NOT_INFERIOR`."""

    draft: str
    traffic: str
    loads: int
    best_fixed: str | None
    tok_per_s: Mapping[str, float]
    standings: Mapping[str, Standing]
    own_best: Mapping[str, Ratio]
    not_inferior: Mapping[str, int]


@dataclass(frozen=True)
class Check:
    """Two arms that are the same thing, and how far apart they came out. ``kind`` is "the same arm
    twice" (the noise) or "a server of its own" (a stock SGLang with these steps against the shared
    server)."""

    kind: str
    draft: str
    arm: str
    against: str
    condition: Condition
    ratio: Ratio

    @property
    def within_noise(self) -> bool | None:
        """None where there are too few blocks for an interval."""
        if self.ratio.low is None or self.ratio.high is None:
            return None
        return self.ratio.low <= 1 <= self.ratio.high


@dataclass(frozen=True)
class Judgement:
    """Cells by draft and load, sweeps by draft and traffic, and the checks."""

    cells: Sequence[Cell]
    sweeps: Sequence[Sweep]
    checks: Sequence[Check]


Paired = Mapping[Arm, Sequence[BlockResult]]


def judge(wanted: Comparison, outcome: Outcome) -> Judgement:
    """``none`` and other servers are measured once and stand in each draft's cells."""
    cells: list[Cell] = []
    sweeps: list[Sweep] = []
    checks: list[Check] = []
    for draft in [draft.name for draft in wanted.drafts] or [NO_DRAFT]:
        arms = [arm for arm in wanted.arms if arm.draft in (NO_DRAFT, draft)]
        for conditions in wanted.traffic:
            samples, closed = [], []
            for condition in conditions:
                paired, alone = pair_up(outcome.results, arms, condition, outcome.failures)
                for load in loads_of([*paired.values(), *alone.values()]):
                    found = _cells(draft, load, paired, alone, wanted, outcome)
                    cells += found
                    if not paired:
                        continue
                    sample = sample_of(paired, load)
                    checks += _checks(draft, load, list(paired), sample)
                    if load.rate is None:  # an open loop's rate is given: no throughput to compare
                        samples.append((list(paired), sample))
                        closed.append(found)
            if samples:
                base = wanted.options.base
                sweeps.append(_sweep(draft, conditions[0].traffic, samples, closed, base))
    return Judgement(cells, sweeps, checks)


def widest(wanted: Comparison, results: Results, condition: Condition) -> float:
    """The widest interval, in logs, of an arm that adapts over the best fixed setting; infinite
    where there is none yet."""
    widths = [0.0]
    for draft in [draft.name for draft in wanted.drafts] or [NO_DRAFT]:
        arms = [arm for arm in wanted.arms if arm.draft in (NO_DRAFT, draft)]
        paired, _ = pair_up(results, arms, condition)
        for load in loads_of(paired.values()):
            sample, names = sample_of(paired, load), list(paired)
            rates = sample.tokens.sum(axis=1) / sample.seconds.sum(axis=1)
            fixed = [i for i, arm in enumerate(names) if arm.is_fixed]
            best = max(fixed, key=lambda i: rates[i], default=None)
            for i, arm in enumerate(names):
                if arm.learns and best is not None:
                    found = ratio([sample], i, best)
                    widths.append(
                        math.inf if found.low is None else math.log(found.value / found.low)
                    )
    return max(widths)


def pair_up(
    results: Results, arms: Sequence[Arm], condition: Condition, failed: Collection[str] = ()
) -> tuple[Paired, Paired]:
    """The blocks that all arms ran, by arm, and those of arms whose server ``failed``."""
    ran = {arm: found for arm in arms if (found := results.of(arm, condition))}
    good = [arm for arm in ran if arm.server not in failed]
    common = results.common(good, condition)
    paired = {arm: blocks for arm, blocks in common.items() if blocks}
    return paired, {arm: blocks for arm, blocks in ran.items() if arm not in paired}


def loads_of(blocks: Collection[Sequence[BlockResult]]) -> list[Condition]:
    """The loads that the blocks went through: several of moving traffic."""
    found: dict[Condition, None] = {}
    for results in blocks:
        for result in results:
            condition = result.block.condition
            for segment in result.block.segments:
                level = None if condition.concurrency is None else segment.concurrency
                found[replace(condition, concurrency=level)] = None
    return sorted(found, key=lambda load: (load.rate or 0, load.concurrency or 0))


def parts_at(result: BlockResult, load: Condition) -> list[tuple[Part, list[int]]]:
    """The parts of a block under ``load``, and which of its requests they have."""
    found, start = [], 0
    for part, segment in zip(result.parts, result.block.segments, strict=True):
        places = list(range(start, start + len(segment.prompts)))
        start += len(segment.prompts)
        if load.concurrency in (None, segment.concurrency):
            found.append((part, places))
    return found


def sample_of(paired: Paired, load: Condition) -> Sample:
    """Tokens and seconds of the arms under ``load``, request by request."""
    rows: list[list[np.ndarray]] = []
    block: list[int] = []
    prompt: list[str] = []
    for number, results in enumerate(paired.values()):
        tokens, seconds = [], []
        for result in results:
            for part, places in parts_at(result, load):
                tokens.append(part.tokens)
                seconds.append(part.shares)
                if number == 0:
                    block += [result.block.index] * len(places)
                    prompt += [result.block.prompts[place].id for place in places]
        rows.append([np.concatenate(tokens), np.concatenate(seconds)])
    tokens_of, seconds_of = np.array(rows).swapaxes(0, 1)
    return Sample(tokens_of, seconds_of, np.array(block), np.array(prompt))


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": round(float(value), 5) for p, value in zip(PERCENTILES, found, strict=True)}


def _cells(
    draft: str,
    load: Condition,
    paired: Paired,
    alone: Paired,
    wanted: Comparison,
    outcome: Outcome,
) -> list[Cell]:
    standings = (
        _standings([(list(paired), sample_of(paired, load))], wanted.options.base) if paired else {}
    )
    cells = []
    for arm, results in {**paired, **alone}.items():
        parts = [parts_at(result, load) for result in results]
        done = [
            result.completions[place]
            for result, found in zip(results, parts, strict=True)
            for _, places in found
            for place in places
        ]
        counted = [[part for part, _ in found] for found in parts]
        flat = [part for found in counted for part in found]
        tokens, seconds = (
            sum(map(f, flat)) for f in (lambda p: p.tokens.sum(), lambda p: p.seconds)
        )
        cells.append(
            Cell(
                draft,
                arm.name,
                load,
                float(tokens / seconds) if seconds else 0.0,
                results,
                counted,
                done,
                standings.get(arm.name, Standing({}, (), None)),
                outcome.verdicts.get((arm, results[0].block.condition)),
                _goodput(results, done, wanted.options.goodput),
            )
        )
    return cells


def _goodput(
    results: Sequence[BlockResult], done: Sequence[Completion], objective: Goodput | None
) -> float | None:
    """Requests per second that keep the objective."""
    if objective is None:
        return None
    good = sum(
        (objective.ttft is None or (c.ttft_s or math.inf) <= objective.ttft)
        and (objective.tpot is None or (c.tpot_s or 0.0) <= objective.tpot)
        and (objective.e2e is None or c.e2e_s <= objective.e2e)
        for c in done
    )
    return good / sum(result.seconds for result in results)


def _standings(
    samples: Sequence[tuple[Sequence[Arm], Sample]], baseline: str
) -> dict[str, Standing]:
    """Of the arms that are in every cell, by name."""
    arms = [arm for arm in samples[0][0] if all(arm in names for names, _ in samples)]
    cells = [_only(sample, [names.index(arm) for arm in arms]) for names, sample in samples]
    rates = sum(np.log(c.tokens.sum(axis=1) / c.seconds.sum(axis=1)) for c in cells)
    fixed = [i for i, arm in enumerate(arms) if arm.is_fixed]
    best = max(fixed, key=lambda i: rates[i], default=None)
    others = {
        i for i, arm in enumerate(arms) if i in fixed or arm.name in ("ema", RESTATED, baseline)
    }
    return {
        arm.name: Standing(
            {arms[j].name: ratio(cells, i, j) for j in sorted(others) if j != i},
            [arms[j].name for j in fixed if j != i],
            None if best is None else arms[best].name,
        )
        for i, arm in enumerate(arms)
    }


def _only(sample: Sample, arms: Sequence[int]) -> Sample:
    return replace(sample, tokens=sample.tokens[arms], seconds=sample.seconds[arms])


def _sweep(
    draft: str,
    traffic: str,
    samples: Sequence[tuple[Sequence[Arm], Sample]],
    cells: Sequence[Sequence[Cell]],
    baseline: str,
) -> Sweep:
    standings = _standings(samples, baseline)
    rates = {
        arm: math.exp(
            np.mean([math.log(c.tok_per_s) for load in cells for c in load if c.arm == arm])
        )
        for arm in standings
    }
    best = next((standing.best_fixed for standing in standings.values()), None)
    own_best, not_inferior = {}, {}
    for arm in standings:
        ours = [next(cell for cell in load if cell.arm == arm) for load in cells]
        places = [[a.name for a in names] for names, _ in samples]
        bests = [cell.standing.best_fixed for cell in ours]
        if all(bests):
            own_best[arm] = _over_own_best(samples, places, arm, [str(name) for name in bests])
        bounds = [cell.standing.lower_bound for cell in ours]
        not_inferior[arm] = sum(bound is not None and bound >= NOT_INFERIOR for bound in bounds)
    return Sweep(draft, traffic, len(cells), best, rates, standings, own_best, not_inferior)


def _over_own_best(
    samples: Sequence[tuple[Sequence[Arm], Sample]],
    places: Sequence[Sequence[str]],
    arm: str,
    bests: Sequence[str],
) -> Ratio:
    pairs = [
        _only(sample, [names.index(arm), names.index(best)])
        for (_, sample), names, best in zip(samples, places, bests, strict=True)
    ]
    return ratio(pairs, 0, 1)


def _checks(draft: str, load: Condition, arms: Sequence[Arm], sample: Sample) -> list[Check]:
    place = {arm.name: i for i, arm in enumerate(arms)}
    found = []
    for i, arm in enumerate(arms):
        kind, other = "the same arm twice", arm.base
        if arm.name.startswith("fresh:"):
            kind, other = "a server of its own", arm.name.replace("fresh:", "static:")
        if other != arm.name and other in place:
            found.append(
                Check(kind, draft, arm.name, other, load, ratio([sample], i, place[other]))
            )
    return found
