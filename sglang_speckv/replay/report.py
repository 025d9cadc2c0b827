"""A replay for people (tables) and for machines (one JSON object)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sglang_speckv.ab.intervals import Ratio
from sglang_speckv.offline.records import trace_hashes
from sglang_speckv.offline.round_cost import MeasuredCost, RoundCost
from sglang_speckv.replay import score
from sglang_speckv.replay.arms import HINDSIGHT, NONE
from sglang_speckv.replay.run import Arm, Replay

_ERRATIC = 0.1
"""Misfit of a cost table from which its figures are warned of."""
_FEW = 1e-3
"""Share of dropped rounds from which a figure is called biased."""


def print_report(replay: Replay, console: Console) -> None:
    console.print(_headline(replay), highlight=False)
    console.print(_arms_table(replay))
    if replay.groups:
        console.print(_groups_table(replay))
    for line in notes(replay):
        console.print(line, style="dim", highlight=False, markup=False)


def _headline(replay: Replay) -> str:
    at = replay.setting
    columns = at.rounds.columns
    header = columns.header
    return (
        f"{header.algorithm} {header.draft} -> {header.target}\n"
        f"{len(at.rounds):,} rounds, {len(at.rounds.row):,} request-rounds of "
        f"{len(columns.prompts):,} prompts; round times: {at.cost.source}"
    )


def _arms_table(replay: Replay) -> Table:
    table = Table(title="every arm on the same rounds", title_style="bold")
    table.add_column("arm")
    for heading in (
        replay.setting.cost.unit,
        "of the best static [95 %]",
        "regret",
        "accept length",
        "forecast bias",
        "dropped",
    ):
        table.add_column(heading, justify="right")
    table.add_column("share of rounds per depth")
    for arm in replay.arms.values():
        style = "bold cyan" if arm.name == "throughput" else ""
        table.add_row(*_row(replay, arm), style=style)
    return table


def _row(replay: Replay, arm: Arm) -> list[str]:
    calibration = _calibration(replay, arm)
    return [
        arm.name + (" *" if knows_too_much(replay, arm.name) else ""),
        f"{arm.rate:.4g}",
        show(replay.ratios[arm.name]),
        f"{replay.regret(arm.name):.1%}",
        f"{_accept_length(replay, arm):.2f}",
        f"{calibration['bias']:+.3f}" if calibration else "-",
        f"{arm.earned.dropped:.1%}" if arm.earned.dropped else "-",
        "  ".join(f"{k}: {share:.0%}" for k, share in _shares(replay, arm).items()),
    ]


def _groups_table(replay: Replay) -> Table:
    table = Table(
        title="of each load's and label's own best static depth [95 %]", title_style="bold"
    )
    table.add_column("arm")
    for group, (best, _) in replay.groups.items():
        table.add_column(f"{group}\n({best})", justify="right")
    for name in replay.arms:
        table.add_row(name, *(show(ratios[name]) for _, ratios in replay.groups.values()))
    return table


def notes(replay: Replay) -> list[str]:
    """What a reader has to know to believe the figures."""
    at = replay.setting
    lines = [
        f"* knows the future: {replay.best_static} is the best static depth found on these rounds, "
        "as are the batch table's; the oracle sees every outcome, in-round the coming window.",
        "Rounds are taken as recorded: another depth would have moved the later ones. Intervals: "
        "paired bootstrap over prompts.",
    ]
    if at.in_sample:
        lines.append(
            "The artifact was learned from these very rounds: its arms know what a server would "
            "not. Replay another trace for honest figures of them."
        )
    worst = max(replay.arms.values(), key=lambda arm: arm.earned.dropped)
    if worst.earned.dropped > _FEW:
        deepest = at.tiers[-1]
        lines.append(
            f"Up to {worst.earned.dropped:.0%} of rounds are dropped ({worst.name}): they accepted "
            "all that was drafted, so the record does not say what a deeper draft would have "
            "brought. That biases the figures, mostly against deep arms; record with "
            f"--speckv-policy static:{deepest} for figures without this bias, or look at the "
            "rounds drafted that deep only (--complete)."
        )
    if isinstance(at.cost, MeasuredCost) and at.cost.misfit > _ERRATIC:
        lines.append(
            f"Measured round times scatter by {at.cost.misfit:.0%} around a smooth fit: the "
            "machine was busy, and these rates are not to be believed; give --cost from a quiet "
            "one, or --draft-cost."
        )
    guessed = _unmeasured(at.cost, np.unique(at.rounds.size).tolist(), at.tiers)
    if guessed:
        lines.append(f"Round times that were not measured but fitted: {', '.join(guessed)}.")
    return lines


def _unmeasured(cost: RoundCost, sizes: Iterable[int], tiers: Iterable[int]) -> list[str]:
    steps = list(tiers)
    found = {size: [k for k in steps if not cost.measured(size, k)] for size in sizes}
    lines = [
        f"batch {size} at {'every depth' if len(missing) == len(steps) else missing}"
        for size, missing in found.items()
        if missing
    ]
    return [*lines[:6], f"and {len(lines) - 6} more batch sizes"] if len(lines) > 7 else lines


def to_json(replay: Replay) -> dict[str, Any]:
    at = replay.setting
    columns = at.rounds.columns
    return {
        "trace": {
            "target": columns.header.target,
            "draft": columns.header.draft,
            "algorithm": columns.header.algorithm,
            "rounds": len(at.rounds),
            "request_rounds": len(at.rounds.row),
            "prompts": len(columns.prompts),
            "labels": list(columns.labels),
            "regroup": replay.options.regroup,
            "traffic": replay.options.traffic if replay.options.regroup else None,
            "lag": at.lag,
            "artifact": replay.options.artifact and str(replay.options.artifact),
            "artifact_in_sample": at.in_sample,
            "profiled": at.profiled,
            "files": trace_hashes(replay.options.traces),
        },
        "cost": {"source": at.cost.source, "unit": at.cost.unit, "table": _cost_rows(replay)},
        "candidate_steps": list(at.tiers),
        "best_static": replay.best_static,
        "arms": [_arm_json(replay, arm) for arm in replay.arms.values()],
        "groups": {
            group: {"best_static": best, "ratios": {name: _ratio(r) for name, r in ratios.items()}}
            for group, (best, ratios) in replay.groups.items()
        },
        "notes": notes(replay),
    }


def _arm_json(replay: Replay, arm: Arm) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "rate": round(arm.rate, 5),
        "of_best_static": _ratio(replay.ratios[arm.name]),
        "regret": round(replay.regret(arm.name), 5),
        "accept_length": round(_accept_length(replay, arm), 4),
        "dropped": round(arm.earned.dropped, 5),
        "hindsight": knows_too_much(replay, arm.name),
        "steps": _shares(replay, arm),
        "calibration": _calibration(replay, arm),
        "seconds": round(arm.cpu, 3),
    }


def _cost_rows(replay: Replay) -> list[dict[str, Any]]:
    at = replay.setting
    sizes = np.unique(at.rounds.size)[:64]
    times = at.cost.times(sizes, at.tiers).tolist()
    return [
        {"batch_size": size, "times": dict(zip(map(str, at.tiers), row, strict=True))}
        for size, row in zip(sizes.tolist(), times, strict=True)
    ]


def knows_too_much(replay: Replay, name: str) -> bool:
    return name in HINDSIGHT or name == replay.best_static


def _accept_length(replay: Replay, arm: Arm) -> float:
    """Mean tokens per request and round, bonus included, over the rounds on record."""
    at = replay.setting
    if arm.name == NONE:
        return 1.0
    every = np.arange(len(at.rounds))
    known = at.table.known[every, arm.played.chosen]
    tokens = at.table.tokens[every, arm.played.chosen][known].sum()
    return float(tokens / max(1, at.rounds.live[known].sum()))


def _shares(replay: Replay, arm: Arm) -> dict[str, float]:
    return {} if arm.name == NONE else score.shares(replay.setting.table, arm.played)


def _calibration(replay: Replay, arm: Arm) -> dict[str, Any] | None:
    if arm.name == NONE:
        return None
    return score.calibration(replay.setting.rounds, replay.setting.table, arm.played)


def _ratio(ratio: Ratio) -> list[float | None]:
    """Value and interval."""
    return [None if v is None else round(v, 5) for v in (ratio.value, ratio.low, ratio.high)]


def show(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3f}"
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
