"""What a run's blocks say, as JSON builtins: every arm under every load, over all loads, the noise.

A fixed setting is one that a user could have launched instead: no drafting, SGLang's default, a
number of steps. ``vs_best_fixed`` is the raw ratio to the one that came out fastest, which flatters
that one. ``lower_bound`` is the lowest of the lower bounds of the ratios to all fixed settings: at
95 %, an arm is at least that much of each of them. A ratio is over the blocks that both arms ran.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sglang_speckv.ab.answer import Record
from sglang_speckv.ab.arms import RESTATED, Arm
from sglang_speckv.ab.counters import Counters
from sglang_speckv.ab.intervals import MIN_BLOCKS, NOT_INFERIOR, Ratio, Sample, ratio
from sglang_speckv.ab.journal import BlockResult, Blocks
from sglang_speckv.ab.options import Goodput
from sglang_speckv.ab.outcome import Outcome
from sglang_speckv.ab.request import Completion
from sglang_speckv.ab.traffic import Condition
from sglang_speckv.ab.window import Part

PERCENTILES = (50, 90, 99)

Load = tuple[Condition, Condition]
"""What blocks ran under, and the load within them: moving traffic goes through several."""


def judge(
    arms: Sequence[Arm],
    traffic: Sequence[Sequence[Condition]],
    outcome: Outcome,
    objective: Goodput | None = None,
) -> Record:
    """``cells`` by draft and load, ``sweep`` by draft and traffic, and the ``checks``. ``traffic``
    has the conditions of each kind."""
    cells: list[Record] = []
    checks: list[Record] = []
    sweeps: dict[str, Record] = {}
    blocks = outcome.blocks
    for draft in dict.fromkeys(arm.draft for arm in arms):
        ours = [arm for arm in arms if arm.draft == draft]
        for conditions in traffic:
            closed: list[tuple[Load, list[Record]]] = []
            for load in [load for c in conditions for load in loads_of(blocks, ours, c)]:
                ran = [arm for arm in ours if blocks.of(arm, load[0])]
                found = [_cell(arm, load, outcome, objective) for arm in ran]
                for cell, arm in zip(found, ran, strict=True):
                    cell |= _standing(blocks, arm, ran, [load])
                cells += found
                checks += _checks(blocks, ran, load)
                if load[1].rate is None:  # an open loop's rate is given: nothing to compare
                    closed.append((load, found))
            if closed:
                sweep = _sweep(blocks, ours, closed)
                sweeps.setdefault(draft, {})[conditions[0].traffic] = sweep
    return {"cells": cells, "sweep": sweeps, "checks": checks}


def widest(blocks: Blocks, arms: Sequence[Arm], condition: Condition) -> float:
    """The widest interval, in logs, of an arm that adapts over the best fixed setting, where none
    adapts of the other fixed settings; infinite where there is none yet."""
    widths = [0.0]
    for load in loads_of(blocks, arms, condition):
        settings = _fixed(blocks, arms, [load])
        name = _best(blocks, settings, [load])
        for arm in [arm for arm in arms if arm.learns] or settings:
            if name is not None and name != arm.name:
                best = next(setting for setting in settings if setting.name == name)
                found = versus(blocks, arm, best, [load])
                low = found and found.low
                widths.append(math.log(found.value / low) if found and low else math.inf)
    return max(widths)


def versus(blocks: Blocks, arm: Arm, other: Arm, loads: Sequence[Load]) -> Ratio | None:
    """tok/s of one arm over another's, the geometric mean over ``loads``; None where they have no
    block in common."""
    samples = [_sample(blocks.paired(arm, other, condition), load) for condition, load in loads]
    found = [sample for sample in samples if sample is not None]
    if not found or len(found) < len(samples):
        return None
    if not all(s.tokens.sum(axis=1).all() and s.seconds.sum(axis=1).all() for s in found):
        return None  # nothing came within the window: there is no rate to divide by
    return ratio(found, 0, 1)


def loads_of(blocks: Blocks, arms: Sequence[Arm], condition: Condition) -> list[Load]:
    """The loads that blocks under ``condition`` went through."""
    found: dict[Condition, None] = {}
    for result in [result for arm in arms for result in blocks.of(arm, condition)]:
        for segment in result.block.segments:
            level = None if condition.concurrency is None else segment.concurrency
            found[replace(condition, concurrency=level)] = None
    return [(condition, load) for load in sorted(found, key=lambda load: load.concurrency or 0)]


def percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = np.percentile(known, PERCENTILES)
    return {f"p{p}": round(float(value), 5) for p, value in zip(PERCENTILES, found, strict=True)}


def _sample(pairs: Sequence[tuple[BlockResult, BlockResult]], load: Condition) -> Sample | None:
    """Tokens and seconds of two arms under ``load``, request by request."""
    rows: list[list[np.ndarray]] = [[], [], [], []]
    block: list[str] = []
    prompt: list[str] = []
    for ours, theirs in pairs:
        sides = zip(_parts_at(ours, load), _parts_at(theirs, load), strict=True)
        for (part, places), (other, _) in sides:
            for row, values in zip(
                rows, (part.tokens, other.tokens, part.shares, other.shares), strict=True
            ):
                row.append(values)
            # the loads of moving traffic share their blocks
            block += [f"{ours.block.condition} {ours.block.index}"] * len(places)
            prompt += [ours.block.prompts[place].id for place in places]
    if not block:
        return None
    a, b, c, d = (np.concatenate(row) for row in rows)
    return Sample(np.array([a, b]), np.array([c, d]), np.array(block), np.array(prompt))


def _parts_at(result: BlockResult, load: Condition) -> list[tuple[Part, list[int]]]:
    """The parts of a block under ``load``, and which of its requests they have."""
    found, start = [], 0
    for part, segment in zip(result.parts, result.block.segments, strict=True):
        places = list(range(start, start + len(segment.prompts)))
        start += len(segment.prompts)
        if load.concurrency in (None, segment.concurrency):
            found.append((part, places))
    return found


def _cell(arm: Arm, load: Load, outcome: Outcome, objective: Goodput | None) -> Record:
    """One arm under one load. None where a figure does not exist; times are in seconds."""
    condition, at = load
    ran = outcome.blocks.of(arm, condition)
    by_block = [_parts_at(result, at) for result in ran]
    asked = [
        [result.completions[place] for place in places]
        for result, found in zip(ran, by_block, strict=True)
        for _, places in found
    ]
    done = [completion for together in asked for completion in together]
    seconds = sum(map(_wall_s, asked))
    counters = _counters(ran)
    verdict = outcome.verdicts.get((arm, condition))
    verifies = sum(c.verify_ct for c in done)
    good = [c for c in done if objective and _keeps(c, objective)]
    return {
        "draft": arm.draft,
        "arm": arm.name,
        "traffic": at.traffic,
        "concurrency": at.concurrency,
        "rate": at.rate,
        "load": at.load,
        "blocks": len(ran),
        "tok_per_s": _rounded(_rate(_all_parts(ran, at)), 2),
        "whole_tok_per_s": _rounded(sum(c.tokens for c in done) / seconds, 2),
        "accept_length": _rounded(
            1 + sum(c.num_correct_drafts for c in done) / verifies if verifies else None
        ),
        "accept_rate": _rounded(counters.accept_rate if counters else None),
        "steps": _shares(counters, _batch_sizes(ran, at)),
        "fallbacks": counters and counters.fallbacks,
        "active": True if counters else None,
        "lossless": verdict and verdict.lossless,
        "text": verdict and str(verdict),
        "answers": verdict and verdict.answers,
        "identical": verdict and verdict.identical,
        "ties": verdict and verdict.ties,
        "lost": verdict and verdict.lost,
        "unchecked": verdict and verdict.unchecked,
        "largest_gap": verdict and verdict.largest_gap,
        "ttft_s": percentiles(c.ttft_s for c in done),
        "tpot_s": percentiles(c.tpot_s for c in done),
        "e2e_s": percentiles(c.e2e_s for c in done),
        "goodput_per_s": _rounded(len(good) / seconds) if objective else None,
        "block_results": [
            {
                "index": result.block.index,
                "place": result.place,
                "prompts": [result.block.prompts[i].id for _, places in found for i in places],
                "tokens": round(sum(float(part.tokens.sum()) for part, _ in found), 1),
                "seconds": round(sum(part.seconds for part, _ in found), 4),
                "has_window": all(part.whole for part, _ in found),
                "rounds": result.counters and result.counters.rounds,
            }
            for result, found in zip(ran, by_block, strict=True)
        ],
    }


def _standing(blocks: Blocks, arm: Arm, arms: Sequence[Arm], loads: Sequence[Load]) -> Record:
    """How an arm compares with the others: ``over`` has its ratio to every fixed setting, to
    SGLang's rule and to servers that somebody else runs."""
    settings = _fixed(blocks, arms, loads)
    fixed = [setting.name for setting in settings]
    best = _best(blocks, settings, loads)
    found = {
        other.name: versus(blocks, arm, other, loads)
        for other in arms
        if other != arm
        and (other.is_fixed or other.is_elsewhere or other.name in ("ema", RESTATED))
    }
    over = {name: one for name, one in found.items() if one is not None}
    lows = [over[name].low if name in over else None for name in fixed if name != arm.name]
    known = [low for low in lows if low is not None]
    against = over.get(best or "")
    return {
        "best_fixed": best,
        "vs_best_fixed": against and round(against.value, 4),
        "interval": against and against.interval,
        "lower_bound": round(min(known), 4) if known and len(known) == len(lows) else None,
        "over": {name: _ratio(one) for name, one in over.items()},
    }


def _fixed(blocks: Blocks, arms: Sequence[Arm], loads: Sequence[Load]) -> list[Arm]:
    """The fixed settings; without one that failed before it had blocks enough for an interval where
    others have them: nobody could be said to be at least any part of it. One block less than others
    is no failure: a run may end in the middle of one."""
    every = [arm for arm in arms if arm.is_fixed]
    counts = {arm: min(len(blocks.of(arm, condition)) for condition, _ in loads) for arm in every}
    enough = min(MIN_BLOCKS, max(max(counts.values(), default=1) - 1, 1))
    return [arm for arm in every if counts[arm] >= enough]


def _best(blocks: Blocks, settings: Sequence[Arm], loads: Sequence[Load]) -> str | None:
    """The fastest of some settings, on the blocks that each has in common with the first one."""
    over = {
        arm.name: found.value if (found := versus(blocks, arm, settings[0], loads)) else 0.0
        for arm in settings[1:]
    }
    over |= {arm.name: 1.0 for arm in settings[:1]}
    return max(over, key=lambda name: over[name], default=None)


def _sweep(
    blocks: Blocks, arms: Sequence[Arm], closed: Sequence[tuple[Load, list[Record]]]
) -> Record:
    """All arms of a draft under one kind of traffic: geometric means over its loads.
    ``not_inferior`` counts the loads in which the lower bound reaches :data:`NOT_INFERIOR`."""
    loads = [load for load, _ in closed]
    by_arm: dict[str, list[Record]] = {}
    for cell in [cell for _, cells in closed for cell in cells]:
        by_arm.setdefault(cell["arm"], []).append(cell)
    everywhere = [
        arm
        for arm in arms
        if [cell["tok_per_s"] > 0 for cell in by_arm.get(arm.name, ())] == [True] * len(loads)
    ]
    means = [
        {
            "arm": arm.name,
            "tok_per_s": round(
                math.exp(np.mean([math.log(cell["tok_per_s"]) for cell in by_arm[arm.name]])), 2
            ),
            "not_inferior": sum(
                (cell["lower_bound"] or 0.0) >= NOT_INFERIOR for cell in by_arm[arm.name]
            ),
        }
        for arm in everywhere
    ]
    standings = [_standing(blocks, arm, everywhere, loads) for arm in everywhere]
    return {
        "best_fixed": standings[0]["best_fixed"] if standings else None,
        "loads": len(loads),
        "arms": {
            mean["arm"]: mean | standing for mean, standing in zip(means, standings, strict=True)
        },
    }


def _checks(blocks: Blocks, arms: Sequence[Arm], load: Load) -> list[Record]:
    """Arms that are the same thing, and how far apart they came out: "the same arm twice" is the
    noise, "a server of its own" a stock SGLang with these steps against the shared server."""
    named = {arm.name: arm for arm in arms}
    found = []
    for arm in arms:
        kind, other = "the same arm twice", named.get(arm.base)
        if arm.name.startswith("fresh:") and arm.name == arm.base:
            kind, other = "a server of its own", named.get(arm.base.replace("fresh:", "static:"))
        one = versus(blocks, arm, other, [load]) if other not in (None, arm) else None
        if one is not None and other is not None:
            within = None if one.low is None or one.high is None else one.low <= 1 <= one.high
            found.append(
                {
                    "kind": kind,
                    "draft": arm.draft,
                    "arm": arm.name,
                    "against": other.name,
                    "traffic": load[1].traffic,
                    "concurrency": load[1].concurrency,
                    "rate": load[1].rate,
                    **_ratio(one),
                    "within_noise": within,
                }
            )
    return found


def _counters(ran: Collection[BlockResult]) -> Counters | None:
    """Over all blocks; of moving traffic, under all of its loads."""
    found = [result.counters for result in ran if result.counters is not None]
    return sum(found[1:], found[0]) if found else None


def _batch_sizes(ran: Sequence[BlockResult], load: Condition) -> tuple[int, int] | None:
    """Of moving traffic, (above, up to): the batches that belong to this load."""
    levels = sorted({s.concurrency for result in ran for s in result.block.segments})
    if len(levels) < 2 or load.concurrency is None:
        return None
    place = levels.index(load.concurrency)
    return (levels[place - 1] if place else 0, levels[place])


def _all_parts(ran: Sequence[BlockResult], load: Condition) -> list[Part]:
    return [part for result in ran for part, _ in _parts_at(result, load)]


def _rate(parts: Sequence[Part]) -> float:
    seconds = sum(part.seconds for part in parts)
    return sum(float(part.tokens.sum()) for part in parts) / seconds if seconds else 0.0


def _wall_s(together: Sequence[Completion]) -> float:
    """From the first request's start to the last one's end."""
    return max(c.sent_s + c.e2e_s for c in together) - min(c.sent_s for c in together)


def _keeps(done: Completion, objective: Goodput) -> bool:
    pairs = (
        (done.ttft_s, objective.ttft),
        (done.tpot_s or 0.0, objective.tpot),
        (done.e2e_s, objective.e2e),
    )
    return all(ms is None or (s is not None and 1e3 * s <= ms) for s, ms in pairs)


def _shares(counters: Counters | None, sizes: tuple[int, int] | None) -> Mapping[str, float] | None:
    """Of the decode rounds, by num_steps."""
    if counters is None:
        return None
    return {tier: round(share, 4) for tier, share in counters.shares(sizes).items()}


def _ratio(found: Ratio) -> Record:
    return {"ratio": round(found.value, 4), "interval": found.interval}


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(float(value), digits)
