"""One setting for the whole sweep: geometric means over cells, and what adapting could bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_speckv.bench import stats
from sglang_speckv.bench.arms import Arm
from sglang_speckv.bench.cells import Cell, Paired, capped, sample_of
from sglang_speckv.bench.stats import Ratio, Resampled

LOST = 0.98
WORTH_CHOOSING = 1.03
"""A smaller headroom is within what choosing could hope to capture a share of."""


@dataclass(frozen=True)
class Standing:
    """One arm over all cells; ``worst`` is the cell in which it does worst against the best
    static arm there, ``cells_lost`` are those whose interval is wholly below :data:`LOST`."""

    arm: str
    tok_per_s: float
    vs_best_single: Ratio | None
    vs_baseline: Ratio | None
    vs_ema: Ratio | None
    worst: Cell | None
    cells_lost: int = 0

    def to_json(self) -> dict[str, Any]:
        worst = self.worst.ratio if self.worst else None
        return {
            "tok_per_s": round(self.tok_per_s, 2),
            **_figure("vs_best_single_static", self.vs_best_single),
            **_figure("vs_ema", self.vs_ema),
            **_figure("vs_baseline", self.vs_baseline),
            "worst_cell_vs_best_static": worst and round(worst.value, 4),
            "worst_cell_interval": worst and worst.interval,
            "cells_wholly_below_0.98": self.cells_lost,
        }


@dataclass(frozen=True)
class Sweep:
    """All arms of a draft under one kind of traffic. ``headroom`` is the best static arm of each
    cell over ``best_single``, the one that is best throughout."""

    draft: str
    traffic: str
    headroom: Ratio | None
    best_single: str | None
    standings: Sequence[Standing]

    def captured(self, standing: Standing) -> float | None:
        """The part of the headroom (in logs) that the arm has over the best single static one;
        None where the headroom is too small to share."""
        if self.headroom is None or standing.vs_best_single is None:
            return None
        if self.headroom.value < WORTH_CHOOSING:
            return None
        return math.log(standing.vs_best_single.value) / math.log(self.headroom.value)

    def to_json(self) -> dict[str, Any]:
        arms = {standing.arm: standing.to_json() for standing in self.standings}
        for standing in self.standings:
            captured = self.captured(standing)
            arms[standing.arm]["captured"] = None if captured is None else round(captured, 3)
        return {
            **_figure("headroom", self.headroom),
            "best_single_static": self.best_single,
            **arms,
        }


def sweep_for(
    draft: str, traffic: str, paired: Sequence[Paired], cells: Sequence[Cell], baseline: str
) -> Sweep:
    """From the paired blocks and the cells of every condition of one kind of traffic."""
    arms = [arm for arm in paired[0] if all(arm in blocks for blocks in paired)] if paired else []
    if not arms:
        return Sweep(draft, traffic, None, None, ())
    kept: list[Mapping[Arm, Any]] = [{arm: blocks[arm] for arm in arms} for blocks in paired]
    drawn = Resampled([sample_of(blocks) for blocks in kept])
    static = [i for i, arm in enumerate(arms) if arm.is_static]
    place = {arm.name: i for i, arm in enumerate(arms)}
    rates = {arm.name: _mean_rate(arm.name, cells) for arm in arms}

    def against(i: int, other: str) -> Ratio | None:
        return drawn.ratio(stats.mean_over(i, place[other])) if other in place else None

    standings = [
        Standing(
            arm.name,
            rates[arm.name],
            capped(drawn.ratio(stats.mean_over_best(i, static), True), i in static)
            if static
            else None,
            against(i, baseline),
            against(i, "ema"),
            _worst(arm.name, cells),
            sum(_lost(cell) for cell in cells if cell.arm == arm.name),
        )
        for i, arm in enumerate(arms)
    ]
    headroom = drawn.ratio(stats.headroom(static), True) if static else None
    best = max(static, key=lambda i: rates[arms[i].name], default=None)
    name = None if best is None else arms[best].name
    return Sweep(draft, traffic, _floored(headroom), name, standings)


def _lost(cell: Cell) -> bool:
    return cell.ratio is not None and cell.ratio.high is not None and cell.ratio.high < LOST


def _floored(headroom: Ratio | None) -> Ratio | None:
    """Choosing per cell cannot be worse than not choosing."""
    if headroom is None or headroom.low is None or headroom.high is None:
        return headroom
    return Ratio(*(max(1.0, value) for value in (headroom.value, headroom.low, headroom.high)))


def _mean_rate(arm: str, cells: Sequence[Cell]) -> float:
    rates = [cell.tok_per_s for cell in cells if cell.arm == arm]
    return math.exp(sum(map(math.log, rates)) / len(rates))


def _worst(arm: str, cells: Sequence[Cell]) -> Cell | None:
    with_ratio = [cell for cell in cells if cell.arm == arm and cell.ratio is not None]
    return min(with_ratio, key=lambda cell: cell.ratio.value if cell.ratio else 0, default=None)


def _figure(name: str, ratio: Ratio | None) -> dict[str, Any]:
    return {name: ratio and round(ratio.value, 4), f"{name}_interval": ratio and ratio.interval}
