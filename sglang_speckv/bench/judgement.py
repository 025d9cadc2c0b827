"""Everything that is concluded from a run's blocks, ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_speckv.bench import stats
from sglang_speckv.bench.arms import NO_DRAFT, Arm
from sglang_speckv.bench.cells import Cell, Paired, cells_for, pair_up, sample_of
from sglang_speckv.bench.compare import Comparison, Outcome
from sglang_speckv.bench.stats import Ratio, Resampled
from sglang_speckv.bench.sweep import Sweep, sweep_for
from sglang_speckv.bench.traffic import Condition


@dataclass(frozen=True)
class Check:
    """Two arms that are the same thing: how far apart they came out. ``kind`` is "same arm twice"
    (the noise) or "own server" (a fresh SGLang with these steps against the shared server)."""

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

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "draft": self.draft,
            "arm": self.arm,
            "against": self.against,
            "workload": self.condition.traffic,
            "concurrency": self.condition.concurrency,
            "ratio": round(self.ratio.value, 4),
            "interval": self.ratio.interval,
            "within_noise": self.within_noise,
        }


@dataclass(frozen=True)
class Judgement:
    """Cells by draft and condition, sweeps by draft and traffic, and the checks."""

    cells: Sequence[Cell]
    sweeps: Sequence[Sweep]
    checks: Sequence[Check]


def judgement(wanted: Comparison, outcome: Outcome) -> Judgement:
    """``none`` and other servers are measured once and stand in each draft's cells."""
    cells: list[Cell] = []
    sweeps: list[Sweep] = []
    checks: list[Check] = []
    for draft in [draft.name for draft in wanted.drafts] or [NO_DRAFT]:
        arms = [arm for arm in wanted.arms if arm.draft in (NO_DRAFT, draft)]
        for conditions in wanted.traffic:
            found, pairs = _cells(draft, arms, conditions, wanted, outcome)
            cells += found
            checks += [check for paired in pairs for check in _checks(draft, paired)]
            # an open loop's rate is given, so it says nothing about throughput
            closed = [p for p in pairs if _condition(p).rate is None] or pairs
            kept = {_condition(paired) for paired in closed}
            ours = [cell for cell in found if cell.condition in kept]
            baseline = wanted.options.base
            if closed:
                sweeps.append(sweep_for(draft, conditions[0].traffic, closed, ours, baseline))
    return Judgement(cells, sweeps, checks)


def _cells(
    draft: str,
    arms: Sequence[Arm],
    conditions: Sequence[Condition],
    wanted: Comparison,
    outcome: Outcome,
) -> tuple[list[Cell], list[Paired]]:
    cells: list[Cell] = []
    pairs: list[Paired] = []
    for condition in conditions:
        paired, alone = pair_up(outcome.results, arms, condition, outcome.failures)
        verdicts = {arm: v for (arm, at), v in outcome.verdicts.items() if at == condition}
        cells += cells_for(draft, paired, verdicts, wanted.options.base, alone)
        if paired:
            pairs.append(paired)
    return cells, pairs


def _checks(draft: str, paired: Paired) -> list[Check]:
    arms = list(paired)
    place = {arm.name: i for i, arm in enumerate(arms)}
    drawn = Resampled([sample_of(paired)])
    found = []
    for i, arm in enumerate(arms):
        kind, other = "same arm twice", arm.base
        if arm.name.startswith("fresh:"):
            kind, other = "own server", arm.name.replace("fresh:", "static:")
        if other != arm.name and other in place:
            ratio = drawn.ratio(stats.over(i, place[other]))
            found.append(Check(kind, draft, arm.name, other, _condition(paired), ratio))
    return found


def _condition(paired: Paired) -> Condition:
    return next(iter(paired.values()))[0].block.condition
