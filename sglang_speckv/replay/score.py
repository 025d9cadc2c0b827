"""What a replayed arm earned: tokens per second, how sure that is, and how good its forecasts.

Within a cell (one load, one class of prompts) the rate is all tokens over all time. Over cells it
is that of a fixed amount of work, the recorded request-rounds of each: with a fixed number of
rounds instead, being slow where tokens are cheap would count as a merit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.replay.play import Played, Table
from sglang_speckv.replay.rounds import Rounds

RESAMPLES = 2000
BINS = 10
"""Of the reliability diagram, equally filled."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Which cell each round [n] is in, and per cell its load, label and request-rounds."""

    of: np.ndarray
    loads: tuple[str, ...]
    labels: tuple[str, ...]
    work: np.ndarray

    def __len__(self) -> int:
        return len(self.loads)


@dataclass(frozen=True, eq=False)
class Earned:
    """``tokens`` and ``seconds`` [prompts, cells] of an arm over the rounds on record for it."""

    tokens: np.ndarray
    seconds: np.ndarray
    dropped: float
    """Share of rounds whose outcome at the chosen depth is not on record."""


def load_of(size: int) -> str:
    """Buckets of batch sizes: 1, 2, 3-4, 5-8, 9-16, ..."""
    high = 1
    while high < size:
        high *= 2
    low = high // 2 + 1
    return str(high) if low >= high else f"{low}-{high}"


def cells_of(rounds: Rounds) -> Cells:
    sizes, which = np.unique(rounds.size, return_inverse=True)
    loads = [load_of(size) for size in sizes.tolist()]
    order = list(dict.fromkeys(loads))
    load = np.array([order.index(name) for name in loads])[which.ravel()]
    label = rounds.label()
    pairs, of = np.unique(np.stack([load, label], axis=1), axis=0, return_inverse=True)
    of = of.ravel()
    names = rounds.columns.labels
    return Cells(
        of=of,
        loads=tuple(order[load] for load, _ in pairs.tolist()),
        labels=tuple("mixed" if at < 0 else names[at] for _, at in pairs.tolist()),
        work=np.bincount(of, rounds.live, minlength=len(pairs)),
    )


def earn(rounds: Rounds, table: Table, cells: Cells, played: Played) -> Earned:
    """Adds up by prompt and cell; a round's time is shared evenly by its requests."""
    every = np.arange(len(rounds))
    known = table.known[every, played.chosen]
    live = rounds.live
    kept = np.repeat(known, live)
    steps = np.asarray(table.tiers)[np.repeat(played.chosen, live)[kept]]
    time = np.repeat(table.seconds[every, played.chosen] / live, live)[kept]
    tokens = np.minimum(rounds.correct[kept], steps) + 1
    prompts = len(rounds.columns.prompts)
    place = rounds.columns.prompt[rounds.row[kept]] * len(cells) + np.repeat(cells.of, live)[kept]
    shape = prompts, len(cells)
    sums = [np.bincount(place, of, minlength=prompts * len(cells)) for of in (tokens, time)]
    return Earned(sums[0].reshape(shape), sums[1].reshape(shape), 1.0 - float(known.mean()))


def rate(earned: Earned, work: np.ndarray, cells: Sequence[int] | None = None) -> float:
    """Tokens per second over the named cells (all of them)."""
    tokens, seconds = earned.tokens.sum(axis=0), earned.seconds.sum(axis=0)
    return float(_rates(tokens, seconds, work, cells))


def compare(
    arms: Mapping[str, Earned], base: str, work: np.ndarray, cells: Sequence[int] | None = None
) -> dict[str, Ratio]:
    """Each arm's rate over that of ``base``, with a 95 % interval: paired bootstrap over prompts,
    the same resamples for every arm."""
    reference = arms[base]
    present = np.flatnonzero(reference.tokens.sum(axis=1) > 0)
    draws = None
    if len(present) >= 3:
        rng = np.random.default_rng(0)
        draws = rng.multinomial(len(present), [1 / len(present)] * len(present), RESAMPLES)
    below = _resampled(reference, draws, present, work, cells)
    ratios = {}
    for name, earned in arms.items():
        value = rate(earned, work, cells) / rate(reference, work, cells)
        if below is None:
            ratios[name] = Ratio(value)
            continue
        above = _resampled(earned, draws, present, work, cells)
        low, high = np.nanpercentile(above / below, (2.5, 97.5))
        ratios[name] = Ratio(value, float(low), float(high))
    return ratios


def _resampled(
    earned: Earned,
    draws: np.ndarray | None,
    present: np.ndarray,
    work: np.ndarray,
    cells: Sequence[int] | None,
) -> Any:
    if draws is None:
        return None
    sums = draws @ earned.tokens[present], draws @ earned.seconds[present]
    return _rates(*sums, work, cells)


def _rates(
    tokens: np.ndarray, seconds: np.ndarray, work: np.ndarray, cells: Sequence[int] | None
) -> np.ndarray:
    """Rate along the last axis; cells that a resample or an arm's record lacks do not count."""
    chosen = list(range(len(work)) if cells is None else cells)
    tokens, seconds, work = tokens[..., chosen], seconds[..., chosen], work[chosen]
    here = np.where(tokens > 0, work, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        time = np.where(tokens > 0, work * seconds / tokens, 0.0)
        return np.asarray(here.sum(axis=-1) / time.sum(axis=-1))


def shares(table: Table, played: Played) -> dict[str, float]:
    """Share of rounds per tier that was chosen at all."""
    counts = np.bincount(played.chosen, minlength=len(table.tiers)) / max(1, len(played.chosen))
    return {str(k): round(float(s), 4) for k, s in zip(table.tiers, counts, strict=True) if s > 0}


def calibration(rounds: Rounds, table: Table, played: Played) -> dict[str, Any] | None:
    """How expected accept lengths compare with what came, or None where none was given.

    ``reliability``: [expected, realised, rounds] per bin. ``brier``: mean squared error of the
    expected share of accepted drafts, (length - 1) / num_steps, over the rounds that drafted;
    ``brier_constant`` is that of each depth's own mean, known with hindsight.
    """
    every = np.arange(len(rounds))
    steps = np.asarray(table.tiers)[played.chosen]
    rows = np.flatnonzero(
        table.known[every, played.chosen] & ~np.isnan(played.expected) & (steps > 0)
    )
    if not len(rows):
        return None
    expected, steps = played.expected[rows], steps[rows]
    came = table.tokens[rows, played.chosen[rows]] / rounds.live[rows]
    constant = np.bincount(steps, came)[steps] / np.bincount(steps)[steps]
    order = np.argsort(expected, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    return {
        "bias": round(float((expected - came).mean()), 4),
        "brier": round(float((((expected - came) / steps) ** 2).mean()), 5),
        "brier_constant": round(float((((constant - came) / steps) ** 2).mean()), 5),
        "reliability": [
            [round(float(expected[b].mean()), 4), round(float(came[b].mean()), 4), len(b)]
            for b in bins
        ],
    }
